// Package wire holds what travels between capctl and capd: JSON structs, paths, header
// names and error codes. It has no logic but the reading and writing of units, so that
// both sides, and whoever scripts against them, share one description.
package wire

import "time"

// Version is the version of capctl and capd, set by the build
// (-ldflags "-X capd/ctl/wire.Version=1.2.3") and by nobody else.
var Version = "devel"

// DefaultSocket is where capd listens and capctl connects, unless told otherwise.
const DefaultSocket = "/run/capd/capd.sock"

// NetnsSocket is where the capd of a network namespace listens: capd@NAME.socket.
func NetnsSocket(name string) string { return "/run/capd/" + name + "/capd.sock" }

// MaxRequestBody is the largest request body that capd reads, in bytes; more gets 413.
const MaxRequestBody = 1 << 20

// StartRequest asks for a capture. Every field is optional: a nil pointer, an empty
// string or an empty list means "the box's default"; a pointer to zero means zero.
type StartRequest struct {
	Type        string            `json:"type,omitempty"`         // TypeFull or TypeSimple
	System      string            `json:"system,omitempty"`       // the model API's field; only "magic-transit"
	Name        string            `json:"name,omitempty"`         // unique among unfinished captures
	Filter      string            `json:"filter,omitempty"`       // pcap-filter(7)
	FilterV1    *FilterV1         `json:"filter_v1,omitempty"`    // both filters given: both must match
	Interfaces  []string          `json:"interfaces,omitempty"`   // names, with * at the end for a prefix
	Hooks       []string          `json:"hooks,omitempty"`        // prerouting, input, forward, output, postrouting, ingress, egress
	Snaplen     *uint32           `json:"snaplen,omitempty"`      // bytes of each packet kept, link-layer header included; 0 = whole
	Sample      *uint32           `json:"sample,omitempty"`       // one in N; 1 = all
	SampleBy    string            `json:"sample_by,omitempty"`    // packet or flow
	HeadersOnly bool              `json:"headers_only,omitempty"` // cut at the payload
	Annotate    bool              `json:"annotate,omitempty"`     // mark, conntrack, uid/gid as packet comments
	TimeLimit   *Seconds          `json:"time_limit,omitempty"`   // at most limits.max_time_limit
	ByteLimit   *Size             `json:"byte_limit,omitempty"`   // sum of the capture files before compression
	PacketLimit *uint64           `json:"packet_limit,omitempty"` // packets in the files; 0 = none
	OnOverload  string            `json:"on_overload,omitempty"`  // sample or stop
	Format      string            `json:"format,omitempty"`       // pcapng or pcap
	LinkType    string            `json:"link_type,omitempty"`    // auto, ethernet, raw or sll2
	SegmentSize *Size             `json:"segment_size,omitempty"` // bytes of one file
	SegmentTime *Seconds          `json:"segment_time,omitempty"` // 0 = by size only
	Ring        *uint32           `json:"ring,omitempty"`         // keep the newest N segments; 0 = all
	Destination string            `json:"destination,omitempty"`  // a profile's name; "" = keep on the box
	Check       *bool             `json:"check,omitempty"`        // check the destination before the first packet
	Labels      map[string]string `json:"labels,omitempty"`       // free, also for the destination's path template
	Exclude     []Flow            `json:"exclude,omitempty"`      // flows never captured, in either direction
}

// FilterV1 is the model API's filter: every field that is given must match.
type FilterV1 struct {
	SourceAddress      string   `json:"source_address,omitempty"` // an address or CIDR, IPv4 or IPv6
	SourcePort         Port     `json:"source_port,omitempty"`
	DestinationAddress string   `json:"destination_address,omitempty"`
	DestinationPort    Port     `json:"destination_port,omitempty"`
	Protocol           Protocol `json:"protocol,omitempty"`
}

// Flow is one transport flow. Addresses are single addresses; a port of 0 means any.
type Flow struct {
	Source          string `json:"source,omitempty"`
	SourcePort      Port   `json:"source_port,omitempty"`
	Destination     string `json:"destination,omitempty"`
	DestinationPort Port   `json:"destination_port,omitempty"`
}

// Values of the request's enumerations.
const (
	TypeFull   = "full"
	TypeSimple = "simple"

	SystemMagicTransit = "magic-transit"

	SampleByPacket = "packet"
	SampleByFlow   = "flow"

	OverloadSample = "sample"
	OverloadStop   = "stop"

	FormatPcapng = "pcapng"
	FormatPcap   = "pcap"

	LinkAuto     = "auto"
	LinkEthernet = "ethernet"
	LinkRaw      = "raw"
	LinkSLL2     = "sll2"

	HookPrerouting  = "prerouting"
	HookInput       = "input"
	HookForward     = "forward"
	HookOutput      = "output"
	HookPostrouting = "postrouting"
	HookIngress     = "ingress"
	HookEgress      = "egress"
)

// Capture statuses, in the order of a capture's life.
const (
	StatusPending    = "pending"
	StatusRunning    = "running"
	StatusDelivering = "delivering"
	StatusComplete   = "complete"
	StatusFailed     = "failed"
)

// Why a capture stopped.
const (
	StopTimeLimit   = "time_limit"
	StopPacketLimit = "packet_limit"
	StopByteLimit   = "byte_limit"
	StopRequested   = "requested"
	StopOverload    = "overload"
	StopNoSpace     = "no_space"
	StopShutdown    = "shutdown"
	StopInterrupted = "interrupted"
	StopError       = "error"
)

// File statuses.
const (
	FileOpen      = "open"
	FileSpooled   = "spooled"
	FileUploading = "uploading"
	FileDelivered = "delivered"
	FileFailed    = "failed"
	FileRemoved   = "removed"
)

// How a delivered file was proven.
const (
	VerifiedReadback = "readback"
	VerifiedChecksum = "checksum"
)

// Capture is everything that capd says about one capture. The embedded request holds
// its fields as in force, defaults filled in.
type Capture struct {
	ID     string `json:"id"` // 32 hexadecimal digits
	Host   string `json:"host"`
	Status string `json:"status"`
	// Stream says that the capture has no files: it went to whoever asked for it, and
	// lived as long as that connection (PathStream).
	Stream bool `json:"stream,omitempty"`
	StartRequest
	Submitted   Time      `json:"submitted"`
	Started     *Time     `json:"started"`
	Stopped     *Time     `json:"stopped"`
	Completed   *Time     `json:"completed"`
	StopReason  string    `json:"stop_reason,omitempty"`
	RequestedBy Requester `json:"requested_by"`
	Packets     Packets   `json:"packets"`
	Bytes       Bytes     `json:"bytes"`
	Files       []File    `json:"files"`             // of removed ones only the newest RemovedListed
	Removed     *Removed  `json:"removed,omitempty"` // nil: every file is listed
	Warnings    []Warning `json:"warnings"`
	Error       *Problem  `json:"error,omitempty"`
	Actions     []Action  `json:"actions,omitempty"` // not in lists
}

// Action is something that somebody did to a capture or with its packets. The journal
// has them all; a capture's record keeps its start and the latest.
type Action struct {
	Time   Time      `json:"time"`
	Action string    `json:"action"` // start, stop, retry, download, ...
	By     Requester `json:"by"`
	File   string    `json:"file,omitempty"` // that was read
	Result string    `json:"result"`         // ok; cut: the reader went away before the end
}

// RemovedListed is how many removed files a capture lists; Removed counts all of them.
const RemovedListed = 100

// Removed sums up the files with status FileRemoved: what a ring (StartRequest.Ring) let
// go before it was delivered, and what was lost with a spool in memory. Their packets are
// captured packets all the same: Packets.Captured is what the other files hold and
// Removed.Packets together, and Bytes.Written likewise.
type Removed struct {
	Files   uint64 `json:"files"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Requester is who asked for a capture, from the socket's peer credentials.
type Requester struct {
	UID      uint32  `json:"uid"`
	User     string  `json:"user,omitempty"`
	LoginUID *uint32 `json:"login_uid,omitempty"` // absent where no login session stands behind it
	PID      int32   `json:"pid"`
}

// Packets counts packets. At every stop seen = matched + sampled_out + limited and
// matched = captured + lost + discarded hold exactly. What is not known is nil, never 0:
// after a kill of capd all but Captured. Seen, SampledOut, Limited and Matched come from
// the kernel's own counters, and Lost, too, needs those at the end.
type Packets struct {
	Seen       *uint64 `json:"seen"`
	SampledOut *uint64 `json:"sampled_out"`
	Limited    *uint64 `json:"limited"`
	Matched    *uint64 `json:"matched"`
	Captured   uint64  `json:"captured"`
	Lost       *uint64 `json:"lost"`
	Discarded  *uint64 `json:"discarded"`
	LostBy     LostBy  `json:"lost_by"`
}

// LostBy says where packets were lost; the parts add up to Packets.Lost. Where that is not
// known they are what is known of it, and at least so many were lost.
type LostBy struct {
	Sequence uint64 `json:"sequence"`         // gaps in NFLOG's own numbering
	Tail     uint64 `json:"tail"`             // counted by the rule, never numbered or after the last number
	Decode   uint64 `json:"decode,omitempty"` // arrived malformed
	Write    uint64 `json:"write,omitempty"`  // captured, but the file could not be written
	Spool    uint64 `json:"spool,omitempty"`  // the spool in memory had no room
}

// Bytes counts bytes: packet bytes captured, file bytes written, file bytes delivered.
type Bytes struct {
	Captured  uint64 `json:"captured"`
	Written   uint64 `json:"written"`
	Delivered uint64 `json:"delivered"`
}

// File is one segment of a capture.
type File struct {
	Name        string `json:"name"`
	Status      string `json:"status"`
	Packets     uint64 `json:"packets"`
	Bytes       uint64 `json:"bytes"`
	First       *Time  `json:"first"` // timestamp of the earliest packet
	Last        *Time  `json:"last"`  // timestamp of the latest packet
	SHA256      string `json:"sha256,omitempty"`
	SHA256Plain string `json:"sha256_plain,omitempty"`
	Stored      uint64 `json:"stored,omitempty"` // plain bytes that compression left as they are, because it did not keep up
	Verified    string `json:"verified,omitempty"`
	URL         string `json:"url,omitempty"`
	Attempts    int    `json:"attempts"`
	NextAttempt *Time  `json:"next_attempt,omitempty"`
	Delivered   *Time  `json:"delivered,omitempty"`
	Interrupted bool   `json:"interrupted,omitempty"` // cut by a kill and repaired to its last whole packet
	Cut         bool   `json:"cut,omitempty"`         // compressed or sealed, cut by a kill: it can be read up to the cut
	Error       string `json:"error,omitempty"`
}

// Warning is something a person should know about a capture that still does its work.
type Warning struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Problem is what went wrong with a capture or a delivery.
type Problem struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Time is a moment in UTC, written with nanoseconds and Z.
type Time struct{ time.Time }

// TimeFormat is RFC 3339 with nine digits, always UTC.
const TimeFormat = "2006-01-02T15:04:05.000000000Z"

// MarshalJSON writes TimeFormat.
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(`"` + t.UTC().Format(TimeFormat) + `"`), nil
}

// Names of the files that land last beside a delivered capture: where both are, it is
// whole. SignatureNamespace is what `ssh-keygen -Y verify -n` is told.
const (
	ManifestName       = "manifest.json"
	SealedManifestName = ManifestName + ".age" // where the destination seals
	SignatureName      = ManifestName + ".sig"
	SignatureNamespace = "capd-manifest"
)

// Manifest is what manifest.json holds.
type Manifest struct {
	Capd    string     `json:"capd"`    // version
	Kernel  string     `json:"kernel"`  // uname -sr
	Clock   ClockState `json:"clock"`   // when the manifest was written
	Ruleset string     `json:"ruleset"` // the rules that ran, as nft prints them
	Capture Capture    `json:"capture"`
}

// ClockState is how far a box's clock can be trusted, from adjtimex(2).
type ClockState struct {
	Time         Time  `json:"time"`
	Synchronized bool  `json:"synchronized"`
	MaxErrorUS   int64 `json:"max_error_us"` // the kernel's own bound, microseconds
	OffsetNS     int64 `json:"offset_ns"`    // what the kernel is still correcting
}

// CaptureList answers GET /v1/captures.
type CaptureList struct {
	Captures []Capture `json:"captures"`
}

// Destination is a delivery profile without its secrets.
type Destination struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	URL    string `json:"url"`
	Region string `json:"region,omitempty"` // of an S3 bucket, where the profile names one
	Verify string `json:"verify"`
	Probe  string `json:"probe"`
}

// DestinationList answers GET /v1/destinations.
type DestinationList struct {
	Destinations []Destination `json:"destinations"`
}

// Check answers POST /v1/destinations/{name}/check.
type Check struct {
	OK    bool        `json:"ok"`
	Steps []CheckStep `json:"steps"`
}

// CheckStep is one step of a delivery, tried.
type CheckStep struct {
	Step   string `json:"step"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// Explain answers POST /v1/explain.
type Explain struct {
	Ruleset  string    `json:"ruleset"`
	Kernel   string    `json:"kernel"` // the part of the filter that the kernel matches
	User     string    `json:"user"`   // the part that capd matches itself; "" = none
	Hooks    []string  `json:"hooks"`  // with their priorities: "prerouting -450"
	Reader   []string  `json:"-"`      // what else is done to packets, in words: for people only
	Warnings []Warning `json:"warnings"`
}

// ErrorBody is every answer that is not a success.
type ErrorBody struct {
	Error Error `json:"error"`
}

// Error says what was refused and how to mend it.
type Error struct {
	Status  int    `json:"-"` // the HTTP status it travels with
	Code    string `json:"code"`
	Message string `json:"message"`
	Field   string `json:"field,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Event is something that happened to a capture, a line of GET /v1/events.
type Event struct {
	Time Time   `json:"time"`
	Type string `json:"type"`
	// Capture is the capture as it was then. With EventFile its files are only the one
	// that the event is about. It is absent with EventLagged.
	Capture *Capture `json:"capture,omitempty"`
	Missed  uint64   `json:"missed,omitempty"` // EventLagged: how many events were left out
}

// Event types.
const (
	EventStarted  = "started"  // asked for and admitted; not capturing yet
	EventRunning  = "running"  // every matching packet counts from now on
	EventStopped  = "stopped"  // its counts are final
	EventFile     = "file"     // a file has another status
	EventComplete = "complete" // delivered, or kept where there is no destination
	EventFailed   = "failed"   // could not be started or delivered: see its error
	EventRemoved  = "removed"  // forgotten
	EventWarning  = "warning"  // its last warning is new
	EventLagged   = "lagged"   // this listener was too slow: events are missing here
)

// HeaderCapture names the id of the capture that an answer of PathStream carries.
const HeaderCapture = "Capd-Capture"

// ParamVia is the parameter of both stream calls that names the TCP connection through
// which the stream leaves the box, as "address:port,address:port": it is in no capture
// while the stream lasts.
const ParamVia = "via"

// ContentTypePcapng is the media type of a live stream.
const ContentTypePcapng = "application/x-pcapng"

// ContentTypeLines is the media type of PathEvents: newline-delimited JSON.
const ContentTypeLines = "application/x-ndjson"

// Error codes. The HTTP status each travels with stands beside it.
const (
	CodeBadRequest             = "bad_request"             // 400: not JSON, or not of this form
	CodeForbidden              = "forbidden"               // 403
	CodeNotFound               = "not_found"               // 404: no such path
	CodeNoSuchCapture          = "no_such_capture"         // 404
	CodeNoSuchDestination      = "no_such_destination"     // 404 in a path, 422 in a request
	CodeNoSuchFile             = "no_such_file"            // 404
	CodeMethodNotAllowed       = "method_not_allowed"      // 405
	CodeConflict               = "conflict"                // 409: not in this state
	CodeAmbiguous              = "ambiguous"               // 409: a prefix or name that fits several
	CodeNameTaken              = "name_taken"              // 409
	CodeUndelivered            = "undelivered"             // 409: rm without force
	CodeTooLarge               = "too_large"               // 413
	CodeInvalid                = "invalid"                 // 422: a field's value makes no sense
	CodeUnknownField           = "unknown_field"           // 422
	CodeUnsupported            = "unsupported"             // 422: makes sense, but not on this box
	CodeDestinationUnreachable = "destination_unreachable" // 422 at a check; also in a capture's error
	CodeDestinationRefused     = "destination_refused"     // 422 at a check; credentials, rights, host key
	CodeDestinationExists      = "destination_exists"      // the name is there with other contents
	CodeLimit                  = "limit_reached"           // 429: max_captures and the like
	CodeInterrupted            = "interrupted"             // in a capture's error: capd ended, and what was in memory is lost
	CodeInternal               = "internal"                // 500
	CodeUnavailable            = "unavailable"             // 503: the kernel lacks something
	CodeStopping               = "stopping"                // 503: shutting down; the next capd will answer
	CodeNoSpace                = "no_space"                // 507
)

// Paths of the HTTP interface.
const (
	PathCaptures     = "/v1/captures"
	PathDestinations = "/v1/destinations"
	PathExplain      = "/v1/explain"
	PathStatus       = "/v1/status"
	PathDoctor       = "/v1/doctor"
	PathMetrics      = "/metrics"
	PathEvents       = "/v1/events"
	PathStream       = "/v1/stream"
	PathOpenAPI      = "/v1/openapi.json"
	PathModelAPI     = "/client/v4/accounts/"
)
