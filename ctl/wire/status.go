package wire

// Status answers GET /v1/status.
type Status struct {
	Version     string            `json:"version"`
	Host        string            `json:"host"`
	Kernel      string            `json:"kernel"`
	Started     Time              `json:"started"`
	Captures    StatusCaptures    `json:"captures"`
	Undelivered StatusUndelivered `json:"undelivered"`
	Features    map[string]bool   `json:"features"` // what the kernel can do: owner, nflog, ingress, ...
	Limits      StatusLimits      `json:"limits"`
	Spool       StatusSpool       `json:"spool"`
	Rings       []StatusRing      `json:"rings"` // of captures that run
	Clock       ClockState        `json:"clock"`
	Interfaces  []string          `json:"interfaces"` // of capd's network namespace, by name
}

// StatusCaptures counts captures by what they are doing.
type StatusCaptures struct {
	Running    int `json:"running"`
	Delivering int `json:"delivering"`
	Finished   int `json:"finished"`
}

// StatusUndelivered counts files that are to be delivered and are not yet.
type StatusUndelivered struct {
	Files  int    `json:"files"`
	Bytes  uint64 `json:"bytes"`
	Failed int    `json:"failed"` // of the files: those that are no longer tried (capctl retry)
}

// StatusLimits repeats the limits in force.
type StatusLimits struct {
	MaxCaptures    int     `json:"max_captures"`
	MaxTimeLimit   Seconds `json:"max_time_limit"`
	MaxByteLimit   Size    `json:"max_byte_limit"`
	MaxPacketRate  uint64  `json:"max_packet_rate"`
	SpoolSize      Size    `json:"spool_size"`
	ReceiveBuffer  Size    `json:"receive_buffer"`
	RingSize       Size    `json:"ring_size"`
	GroupsPerStart int     `json:"groups"`
}

// StatusSpool is how full the spool is. Free is what its file system has left, and
// MinFree what of that is kept for others (limits.min_free_space).
type StatusSpool struct {
	Used    Size `json:"used"`
	Size    Size `json:"size"`
	Free    Size `json:"free"`
	MinFree Size `json:"min_free"`
}

// StatusRing is how full the memory between the kernel and a capture's file is.
type StatusRing struct {
	Capture string `json:"capture"` // id
	Used    Size   `json:"used"`
	Size    Size   `json:"size"`
}

// Doctor answers GET /v1/doctor. OK says that no finding is an error.
type Doctor struct {
	OK       bool      `json:"ok"`
	Findings []Finding `json:"findings"`
}

// Finding is one thing that a capture needs, looked at.
type Finding struct {
	ID      string `json:"id"` // what was looked at: kernel.egress, clock, destination.soc
	Level   string `json:"level"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"` // the mend
}

// Levels of a Finding.
const (
	LevelOK      = "ok"
	LevelInfo    = "info"    // good to know
	LevelWarning = "warning" // something is less than it could be
	LevelError   = "error"   // something that captures need does not work
)
