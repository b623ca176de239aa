package api

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"capd/ctl/wire"
)

// The model API is Cloudflare's PCAPs API under /client/v4/accounts/{account}/pcaps, so
// that clients written for it work on anybody's own box. Its answers have its fields and
// its envelope and no others: its SDKs choose between a simple and a full capture by the
// fields that they find. (developers.cloudflare.com/api, Magic Transit, PCAPs; fields and
// status values as in cloudflare-go v6, magic_transit/pcap.go.) Any account is taken: a
// box has but one.

// modelRoutes are the calls of the model API.
func (h *Handler) modelRoutes() []route {
	pcaps := []string{"client", "v4", "accounts", "{account}", "pcaps"}
	at := func(more ...string) []string { return append(pcaps[:len(pcaps):len(pcaps)], more...) }
	return append(h.ownershipRoutes(at),
		route{method: http.MethodPost, pattern: at(), needs: rightStart, does: "start captures", audit: "start", serve: h.modelStart},
		route{method: http.MethodGet, pattern: at(), needs: rightView, does: "list captures", serve: h.modelList},
		route{method: http.MethodGet, pattern: at("{capture}"), needs: rightView, does: "see captures", serve: h.modelGet},
		route{method: http.MethodPut, pattern: at("{capture}", "stop"), needs: rightOwn, does: "stop captures", audit: "stop", serve: h.modelStop},
		route{method: http.MethodGet, pattern: at("{capture}", "download"), needs: rightOwn, does: "read packets", audit: "download", serve: h.modelDownload},
	)
}

// modelRequest is what the model API takes.
type modelRequest struct {
	Type            string         `json:"type"`
	System          string         `json:"system"`
	TimeLimit       *wire.Seconds  `json:"time_limit"`
	ByteLimit       *wire.Size     `json:"byte_limit"`
	PacketLimit     *uint64        `json:"packet_limit"`
	FilterV1        *wire.FilterV1 `json:"filter_v1"`
	ColoName        string         `json:"colo_name"`        // a data centre's name: this box is the only one, whatever it is called
	DestinationConf string         `json:"destination_conf"` // s3://BUCKET[/FOLDER][?region=R] or sftp://PROFILE[/FOLDER]
	OffsetTime      string         `json:"offset_time"`      // refused: nothing is kept of the past
}

// modelEnvelope is around every answer of the model API that has a body.
type modelEnvelope struct {
	Success  bool        `json:"success"`
	Errors   []modelInfo `json:"errors"`
	Messages []modelInfo `json:"messages"`
	Result   any         `json:"result"`
}

type modelInfo struct {
	Code    int    `json:"code"` // 1000 or more
	Message string `json:"message"`
}

// modelSimple is a simple capture.
type modelSimple struct {
	ID        string       `json:"id"`
	FilterV1  modelFilter  `json:"filter_v1"`
	Status    string       `json:"status"`
	Submitted wire.Time    `json:"submitted"`
	System    string       `json:"system"`
	TimeLimit wire.Seconds `json:"time_limit"`
	Type      string       `json:"type"`
}

// modelFull is a full capture: a simple one's fields and these.
type modelFull struct {
	modelSimple
	ByteLimit       wire.Size  `json:"byte_limit"`
	ColoName        string     `json:"colo_name"`
	DestinationConf string     `json:"destination_conf"`
	ErrorMessage    string     `json:"error_message"`
	PacketsCaptured uint64     `json:"packets_captured"`
	StopRequested   *wire.Time `json:"stop_requested,omitempty"`
}

// modelFilter is wire.FilterV1 with the protocol as a number, which is all that the
// model API knows.
type modelFilter struct {
	SourceAddress      string    `json:"source_address,omitempty"`
	SourcePort         wire.Port `json:"source_port,omitempty"`
	DestinationAddress string    `json:"destination_address,omitempty"`
	DestinationPort    wire.Port `json:"destination_port,omitempty"`
	Protocol           uint64    `json:"protocol,omitempty"`
}

func (h *Handler) modelStart(c *call) error {
	var m modelRequest
	if err := c.readBody(&m); err != nil {
		return err
	}
	req := wire.StartRequest{Type: m.Type, System: m.System, TimeLimit: m.TimeLimit, ByteLimit: m.ByteLimit, PacketLimit: m.PacketLimit,
		FilterV1: m.FilterV1, Format: wire.FormatPcap}
	if m.OffsetTime != "" {
		e := invalid("offset_time", fmt.Sprintf("offset_time: capd keeps nothing of the time before a request (%s)", shown(m.OffsetTime)), "leave it out; a ring capture started beforehand keeps the past")
		e.Code = wire.CodeUnsupported
		return e
	}
	if e := m.withinLimits(); e != nil {
		return e
	}
	var e *wire.Error
	if req.Destination, e = modelDestination(m.DestinationConf, h.daemon.Destinations()); e != nil {
		return e
	}
	capture, err := h.begin(c, req)
	if err != nil {
		return err
	}
	answerModel(c, h.modelCapture(capture))
	return nil
}

// The model API's own limits; a box may have narrower ones.
const (
	modelTimeLimit   = wire.Seconds(300e9)
	modelPacketLimit = 10_000
	modelByteLimit   = wire.Size(1e9)
)

// withinLimits holds a request to the model API's limits. What goes beyond them can be had
// by POST /v1/captures.
func (m *modelRequest) withinLimits() *wire.Error {
	const hint = "or start it by POST " + wire.PathCaptures
	switch {
	case m.TimeLimit != nil && (*m.TimeLimit < 1e9 || *m.TimeLimit > modelTimeLimit):
		return invalid("time_limit", fmt.Sprintf("time_limit: %s is out of range", *m.TimeLimit), "write 1 to 300 seconds, "+hint)
	case m.PacketLimit != nil && (*m.PacketLimit < 1 || *m.PacketLimit > modelPacketLimit):
		return invalid("packet_limit", fmt.Sprintf("packet_limit: %d is out of range", *m.PacketLimit), "write 1 to 10000, "+hint)
	case m.ByteLimit != nil && *m.ByteLimit > modelByteLimit:
		return invalid("byte_limit", fmt.Sprintf("byte_limit: %d is out of range", int64(*m.ByteLimit)), "write at most 1000000000, "+hint)
	}
	return nil
}

func (h *Handler) modelList(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	list := []any{}
	for _, capture := range h.daemon.List(true) {
		list = append(list, h.modelCapture(capture))
	}
	answerModel(c, list)
	return nil
}

func (h *Handler) modelGet(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	capture, err := h.find(c, c.vars[1])
	if err != nil {
		return err
	}
	answerModel(c, h.modelCapture(capture))
	return nil
}

func (h *Handler) modelStop(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	if _, err := h.daemon.Stop(c.r.Context(), c.vars[1]); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// pcapHeader is the length of a classic pcap file's header (draft-ietf-opsawg-pcap).
const pcapHeader = 24

// modelDownload sends a capture as one classic pcap file: the first file as it is, the
// others without their headers, which are the same.
func (h *Handler) modelDownload(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	capture, err := h.daemon.Get(c.vars[1])
	if err != nil {
		return err
	}
	switch {
	case capture.Format != wire.FormatPcap:
		return &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchFile, Message: fmt.Sprintf("the capture is in the format %s, not pcap", capture.Format), Hint: "capctl download fetches it"}
	case capture.Status == wire.StatusPending || capture.Status == wire.StatusRunning:
		return &wire.Error{Status: http.StatusConflict, Code: wire.CodeConflict, Message: "the capture is still " + capture.Status, Hint: "stop it, or wait for its end"}
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	var sizes []int64
	var total int64
	for _, file := range capture.Files {
		if !strings.HasSuffix(file.Name, ".pcap") {
			continue // a manifest, or sealed or compressed: not what this call can give
		}
		f, _, err := h.daemon.OpenFile(capture.ID, file.Name)
		if err != nil {
			return err
		}
		files = append(files, f)
		size, err := fileSize(f)
		if err != nil {
			return err
		}
		if skip := min(size, pcapHeader); len(files) > 1 {
			if _, err := f.Seek(skip, io.SeekStart); err != nil {
				return fmt.Errorf("skip the header of %s: %w", file.Name, err)
			}
			size -= skip
		}
		sizes = append(sizes, size)
		total += size
	}
	if len(files) == 0 {
		return noSuchFile(capture.ID + ".pcap")
	}
	header := c.w.Header()
	header.Set("Content-Type", "application/vnd.tcpdump.pcap")
	header.Set("Content-Length", strconv.FormatInt(total, 10))
	header.Set("Content-Disposition", `attachment; filename="`+capture.ID+`.pcap"`)
	c.w.WriteHeader(http.StatusOK)
	for i, f := range files {
		if err := c.send(f, sizes[i]); err != nil {
			return err
		}
	}
	return nil
}

// modelCapture is a capture as the model API shows it.
func (h *Handler) modelCapture(c wire.Capture) any {
	m := modelSimple{ID: c.ID, Submitted: c.Submitted, System: wire.SystemMagicTransit, Type: wire.TypeFull, Status: modelStatus(c.Status)}
	if c.FilterV1 != nil {
		f := c.FilterV1
		m.FilterV1 = modelFilter{SourceAddress: f.SourceAddress, SourcePort: f.SourcePort, DestinationAddress: f.DestinationAddress,
			DestinationPort: f.DestinationPort, Protocol: protocolNumber(string(f.Protocol))}
	}
	if c.TimeLimit != nil {
		m.TimeLimit = *c.TimeLimit
	}
	if c.Type == wire.TypeSimple {
		m.Type = wire.TypeSimple
		return m
	}
	full := modelFull{modelSimple: m, ColoName: c.Host, PacketsCaptured: c.Packets.Captured}
	if c.ByteLimit != nil {
		full.ByteLimit = *c.ByteLimit
	}
	if c.Destination != "" {
		full.DestinationConf = h.modelURI(c.Destination)
	}
	if c.Error != nil {
		full.ErrorMessage = c.Error.Message
	}
	if c.StopReason == wire.StopRequested {
		full.StopRequested = c.Stopped
	}
	return full
}

// modelStatus gives the model API's word for a status.
func modelStatus(status string) string {
	switch status {
	case wire.StatusPending, wire.StatusRunning, wire.StatusFailed:
		return status
	case wire.StatusDelivering:
		return "conversion_running" // recorded, and on its way
	case wire.StatusComplete:
		return "success"
	}
	return "unknown"
}

// protocolNumber gives the number of a protocol (IANA, Protocol Numbers) that a capture
// may carry by name; 0 where the model API has no way to say it.
func protocolNumber(p string) uint64 {
	if n, err := strconv.ParseUint(p, 10, 8); err == nil {
		return n
	}
	return map[string]uint64{"icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "rsvp": 46, "gre": 47, "esp": 50, "ah": 51,
		"icmpv6": 58, "ipv6-icmp": 58, "icmp6": 58, "eigrp": 88, "ospf": 89, "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136}[strings.ToLower(p)]
}

// modelURI is how the model API names a destination, whole: s3://BUCKET/FOLDER?region=R,
// or sftp://PROFILE/FOLDER, with the folder that the profile writes below.
func (h *Handler) modelURI(name string) string {
	for _, d := range h.daemon.Destinations() {
		if d.Name == name {
			return uriOf(d).String()
		}
	}
	return "sftp://" + name // it is configured no more
}

func uriOf(d wire.Destination) *url.URL {
	u := &url.URL{Scheme: "sftp", Host: d.Name}
	_, path, _ := strings.Cut(d.URL, "://")
	host, path, _ := strings.Cut(path, "/")
	if d.Type == "s3" {
		u.Scheme, u.Host = "s3", host
		if d.Region != "" {
			u.RawQuery = url.Values{"region": {d.Region}}.Encode()
		}
	}
	// The folders before the template's first placeholder, or before the file's name.
	fixed, _, _ := strings.Cut(path, "{")
	if i := strings.LastIndexByte(fixed, '/'); i > 0 {
		u.Path = "/" + fixed[:i]
	}
	return u
}

// modelDestination finds the profile that a destination_conf means. It names one by its
// bucket (or the profile's name) and never makes a new place: folder and region, where
// they are given, must be the profile's.
func modelDestination(conf string, profiles []wire.Destination) (string, *wire.Error) {
	if conf == "" {
		return "", nil
	}
	refuse := func(why, hint string) (string, *wire.Error) {
		return "", invalid("destination_conf", fmt.Sprintf("destination_conf: %s %s", shown(conf), why), hint)
	}
	u, err := url.Parse(conf)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || (u.Scheme != "s3" && u.Scheme != "sftp") {
		return refuse("is not a destination", "write s3://BUCKET/FOLDER?region=REGION or sftp://PROFILE/FOLDER")
	}
	query, err := url.ParseQuery(u.RawQuery)
	for key := range query {
		if key != "region" || u.Scheme != "s3" || len(query[key]) != 1 {
			err = fmt.Errorf("unknown parameter %s", key)
		}
	}
	if err != nil {
		return refuse("is not a destination: "+err.Error(), "after ? only region=REGION can stand, and for s3 alone")
	}
	folder, region := strings.Trim(u.Path, "/"), query.Get("region")
	var found, here []string
	for _, d := range profiles {
		has := uriOf(d)
		here = append(here, has.String())
		if has.Scheme == u.Scheme && has.Host == u.Host && (folder == "" || folder == strings.Trim(has.Path, "/")) && (region == "" || d.Region == "" || region == d.Region) {
			found = append(found, d.Name)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		hint := "this box has none"
		if len(here) > 0 {
			hint = "this box has " + strings.Join(here, ", ")
		}
		return refuse("fits no destination of this box", hint)
	}
	return refuse("fits the destinations "+strings.Join(found, " and "), "name the folder, too: "+strings.Join(here, ", "))
}

func answerModel(c *call, result any) {
	answer(c, http.StatusOK, modelEnvelope{Success: true, Errors: []modelInfo{}, Messages: []modelInfo{}, Result: result})
}

// answerModelError sends an error in the model API's envelope. Its SDKs try again after
// 409 and 429, ten times, unless they are told that it is no use.
func answerModelError(c *call, e *wire.Error) {
	if e.Status != http.StatusServiceUnavailable {
		c.w.Header().Set("X-Should-Retry", "false")
	}
	message := e.Message
	if e.Hint != "" {
		message += " (" + e.Hint + ")"
	}
	answer(c, e.Status, modelEnvelope{Errors: []modelInfo{{Code: 1000 + e.Status, Message: message}}, Messages: []modelInfo{}})
}
