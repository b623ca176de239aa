package daemon

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"capd/ctl/wire"
	"capd/daemon/spool"
	"capd/nft"
	"capd/ring"
)

// record is what survives a restart: the capture as everyone sees it, and what the
// manifest needs besides.
type record struct {
	Capture  wire.Capture `json:"capture"`
	Ruleset  string       `json:"ruleset"`
	Manifest string       `json:"manifest,omitempty"` // "", spooled or delivered
	// Sealed: the manifest is encrypted to the destination's recipients, as the files are.
	Sealed bool `json:"sealed,omitempty"`
	// InMemory: what is not delivered goes with the process.
	InMemory bool `json:"in_memory,omitempty"`
	// Gone: something that was to be delivered is on this box no more.
	Gone bool `json:"gone,omitempty"`
	// Refusal: why the latest file that only a person can help was not delivered. A file's
	// own entry holds no more than the text.
	Refusal *wire.Problem `json:"refusal,omitempty"`
}

// capture is one capture from its request to its end.
type capture struct {
	id  string
	d   *Daemon
	log *slog.Logger

	mu      sync.Mutex
	record  record
	open    []string   // segments begun and not yet finished
	closed  *wire.File // a segment that is finished, until the record says so durably; then it is shown
	running *running   // nil before and after
	batches batches    // of a capture that has ended
	began   bool       // by this daemon, not by one before it; set before anyone else knows the capture

	absent   map[string]absence // interfaces that left, by the name or pattern asked for; under mu
	ownNoted int                // connections of capd itself that were left out; under mu
	// queued names the files that the delivery queue has, or gets: then the channel, which is
	// closed when one is handed over, is open. Under mu.
	queued map[string]chan struct{}

	trimming sync.WaitGroup // goroutines that keep the ring's length
	refused  refusal        // the engine's
	giving   atomic.Bool    // a segment under delivery is being given up, to make room

	expiry expiry

	saving  sync.Mutex    // orders writes of the record
	removed bool          // there is no record any more; under saving
	halted  chan struct{} // closed when the capture no longer runs and its counts are final
}

// running is what a capture holds only while it runs.
type running struct {
	plan   *plan
	tap    *tap // of a capture that is a stream
	share  *share
	reader *ring.Reader
	engine *engine
	stop   chan stopping
	final  chan finalCounts
	ended  chan error // the engine's result
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// segmentOpened is called by the engine; it must not wait for a disk.
func (c *capture) segmentOpened(name string) {
	c.mu.Lock()
	c.open = append(c.open, name)
	c.tellLocked(wire.EventFile, &wire.File{Name: name, Status: wire.FileOpen})
	c.mu.Unlock()
}

// segmentFinished is called by the spool's writer, in the order of the segments.
func (c *capture) segmentFinished(s spool.Segment) {
	c.mu.Lock()
	if c.record.Capture.Status == wire.StatusPending {
		c.mu.Unlock()
		return // the start failed, and takes the file back
	}
	c.record.Capture.Packets.LostBy.Write += s.LostPackets
	c.record.Capture.Bytes.Captured += uint64(s.Captured)
	if s.Bytes > 0 {
		c.closed = ptr(wireFile(s))
	}
	c.mu.Unlock()
	c.saveOrLog()
	c.mu.Lock()
	c.open = slices.DeleteFunc(c.open, func(n string) bool { return n == s.Name })
	if c.closed != nil {
		c.record.Capture.Files = append(c.record.Capture.Files, *c.closed)
		c.tellLocked(wire.EventFile, c.closed)
		c.closed = nil
	}
	c.mu.Unlock()
	c.d.deliver(c)
	c.trimLater()
}

func wireFile(s spool.Segment) wire.File {
	f := wire.File{Name: s.Name, Status: wire.FileSpooled, Packets: s.Packets, Bytes: uint64(s.Bytes), SHA256Plain: s.PlainSHA256}
	if strings.Contains(s.Name, ".zst") {
		f.Stored = uint64(s.Hurried)
	}
	if !s.First.IsZero() {
		f.First, f.Last = &wire.Time{Time: s.First.UTC()}, &wire.Time{Time: s.Last.UTC()}
	}
	if s.Err != nil {
		f.Error = s.Err.Error()
	}
	return f
}

// finishLocked gives a halted capture without anything to deliver its last status.
func (c *capture) finishLocked() {
	rec := &c.record.Capture
	rec.Status, rec.Completed = wire.StatusComplete, now()
	if rec.Error != nil {
		rec.Status = wire.StatusFailed
	}
	c.d.expireLater(c)
}

// snapshot is the capture as it is now; while it runs, with the kernel's counters.
func (c *capture) snapshot() wire.Capture {
	c.mu.Lock()
	out := c.record.Capture
	out.Files = slices.Clone(out.Files)
	out.Warnings = slices.Clone(out.Warnings)
	r, open := c.running, slices.Clone(c.open)
	c.mu.Unlock()
	if r == nil {
		return out
	}
	live := &r.engine.live
	p := &out.Packets
	groups := r.reader.Stats().Groups // before the counters, which then are not behind
	kernel, err := c.d.table.Counters(c.id)
	fillArrived(p, arrivedLoss(kernel, err == nil, groups), live)
	if leftOut := live.sampledOut.Load(); err == nil {
		fillSeen(p, kernel.Total(), kernel, leftOut)
	}
	out.Bytes.Captured, out.Bytes.Written = live.bytes.Load(), live.written.Load()
	for i, name := range open {
		f := wire.File{Name: name, Status: wire.FileOpen}
		if i == len(open)-1 {
			f.Packets = live.filePackets.Load()
		}
		out.Files = append(out.Files, f)
	}
	return out
}

// save makes the record durable.
func (c *capture) save() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.removed {
		return nil
	}
	c.mu.Lock()
	rec := c.record
	rec.Capture.Files = slices.Clone(rec.Capture.Files)
	if c.closed != nil {
		rec.Capture.Files = append(rec.Capture.Files, *c.closed)
	}
	rec.Capture.Warnings = slices.Clone(rec.Capture.Warnings)
	c.mu.Unlock()
	return c.d.spool.SaveRecord(c.id, rec)
}

func (c *capture) saveOrLog() {
	if err := c.save(); err != nil {
		c.log.Error("save record", "err", err)
	}
}

func now() *wire.Time { return &wire.Time{Time: time.Now().UTC()} }

// startProblem carries an error of the box to whoever asked for a capture.
func startProblem(err error) error {
	var we *wire.Error
	if errors.As(err, &we) {
		return err
	}
	if w := writeFailure(err); w.reason == wire.StopNoSpace {
		return &wire.Error{Status: http.StatusInsufficientStorage, Code: wire.CodeNoSpace, Message: fmt.Sprintf("start capture: %v", err), Hint: noSpaceHint}
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return fmt.Errorf("start capture: %w", err) // the API has words for it, in every call
	}
	var lack *nft.Lack
	if errors.As(err, &lack) {
		return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeUnsupported, Message: fmt.Sprintf("start capture: %v", err), Hint: lack.Mend}
	}
	return &wire.Error{Status: http.StatusInternalServerError, Code: wire.CodeInternal, Message: fmt.Sprintf("start capture: %v", err)}
}

const noSpaceHint = "make room (capctl list --all, capctl rm CAPTURE), raise limits.spool_size, or keep the newest files only (--ring N)"
