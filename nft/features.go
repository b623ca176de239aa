package nft

// Feature is one thing that a kernel can do or cannot.
type Feature struct {
	Name   string // as status and doctor call it
	Err    error  // nil: it can
	Needed bool   // without it there is no capture
	Gives  string // what it is there for, in words
}

// List gives the features, those first without which there is no capture.
func (f Features) List() []Feature {
	return []Feature{
		{"owner", f.Owner, true, "rules that vanish with capd and that nobody else can change"},
		{"nflog", f.Log, true, "packets from rules"},
		{"timeout", f.Timeout, true, "the dead-man switch"},
		{"rate", f.Rate, false, "the rate guard (max_packet_rate)"},
		{"sample", f.Sample, false, "one packet in N (--sample)"},
		{"flow", f.Flow, false, "one flow in N (--sample-by flow)"},
		{"ingress", f.Ingress, false, "what an interface receives (-i, --hook ingress)"},
		{"egress", f.Egress, false, "what an interface sends (-i, --hook egress)"},
		{"ipsec", f.IPsec, false, "packets once, not again after IPsec"},
		{"vrf", f.VRF, false, "packets once, not again in a VRF"},
	}
}
