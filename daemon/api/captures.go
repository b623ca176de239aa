package api

import (
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strconv"
	"strings"

	"capd/ctl/wire"
)

// captureRoutes are the calls under /v1.
func (h *Handler) captureRoutes() []route {
	at := func(path string) []string { return strings.Split(strings.TrimPrefix(path, "/"), "/") }
	capture := wire.PathCaptures + "/{capture}"
	return []route{
		{method: http.MethodPost, pattern: at(wire.PathCaptures), needs: rightStart, does: "start captures", audit: "start", serve: h.start},
		{method: http.MethodGet, pattern: at(wire.PathCaptures), needs: rightView, does: "list captures", serve: h.list},
		{method: http.MethodGet, pattern: at(capture), needs: rightView, does: "see captures", serve: h.get},
		{method: http.MethodDelete, pattern: at(capture), needs: rightOwn, does: "remove captures", audit: "remove", serve: h.remove},
		{method: http.MethodPost, pattern: at(capture + "/stop"), needs: rightOwn, does: "stop captures", audit: "stop", serve: h.stop},
		{method: http.MethodPost, pattern: at(capture + "/retry"), needs: rightOwn, does: "deliver captures", audit: "retry", serve: h.retry},
		{method: http.MethodGet, pattern: at(capture + "/files/{file}"), needs: rightOwn, does: "read packets", audit: "download", serve: h.file},
		{method: http.MethodGet, pattern: at(capture + "/stream"), needs: rightOwn, does: "read packets", audit: "tail", serve: h.tail},
		{method: http.MethodPost, pattern: at(wire.PathStream), needs: rightStart, does: "start captures", audit: "stream", serve: h.stream},
		{method: http.MethodGet, pattern: at(wire.PathEvents), needs: rightView, does: "follow events", serve: h.events},
		{method: http.MethodGet, pattern: at(wire.PathDestinations), needs: rightView, does: "list destinations", serve: h.destinations},
		{method: http.MethodPost, pattern: at(wire.PathDestinations + "/{name}/check"), needs: rightStart, does: "check destinations", audit: "check", serve: h.check},
		{method: http.MethodPost, pattern: at(wire.PathExplain), needs: rightView, does: "explain captures", serve: h.explain},
		{method: http.MethodGet, pattern: at(wire.PathStatus), needs: rightView, does: "see the status", serve: h.status},
		{method: http.MethodGet, pattern: at(wire.PathDoctor), needs: rightView, does: "see the status", serve: h.doctor},
		{method: http.MethodGet, pattern: at(wire.PathMetrics), needs: rightView, does: "see the metrics", serve: h.metrics},
		{method: http.MethodGet, pattern: at(wire.PathOpenAPI), needs: rightView, does: "see the description", serve: h.openapi},
	}
}

func (h *Handler) start(c *call) error {
	var req wire.StartRequest
	if err := c.readBody(&req); err != nil {
		return err
	}
	capture, err := h.begin(c, req)
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", wire.PathCaptures+"/"+capture.ID)
	answer(c, http.StatusCreated, whole(capture))
	return nil
}

// begin checks a request and starts its capture.
func (h *Handler) begin(c *call, req wire.StartRequest) (wire.Capture, error) {
	c.account.asks(&req)
	if err := c.query(nil); err != nil {
		return wire.Capture{}, err
	}
	if e := validateRequest(&req); e != nil {
		return wire.Capture{}, e
	}
	if e := c.grant.fit(&req); e != nil {
		return wire.Capture{}, e
	}
	capture, err := h.daemon.Start(c.r.Context(), req, c.peer.Requester())
	if err != nil {
		return wire.Capture{}, err
	}
	c.account.is(&capture)
	return capture, nil
}

func (h *Handler) list(c *call) error {
	var all bool
	if err := c.query(map[string]*bool{"all": &all}); err != nil {
		return err
	}
	list := wire.CaptureList{Captures: []wire.Capture{}}
	for _, capture := range h.daemon.List(all) {
		capture.Actions = nil // of one capture at a time
		list.Captures = append(list.Captures, whole(capture))
	}
	answer(c, http.StatusOK, list)
	return nil
}

// whole gives a capture whose lists are never null.
func whole(c wire.Capture) wire.Capture {
	if c.Files == nil {
		c.Files = []wire.File{}
	}
	if c.Warnings == nil {
		c.Warnings = []wire.Warning{}
	}
	return c
}

// find gives the capture that a path names, and takes it down for the audit line.
func (h *Handler) find(c *call, ref string) (wire.Capture, error) {
	c.account.capture = ref
	if !wire.ValidName(ref) {
		return wire.Capture{}, &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchCapture, Message: fmt.Sprintf("no capture is called %s", shown(ref)), Hint: "capctl list --all shows them"}
	}
	capture, err := h.daemon.Get(ref)
	if err == nil {
		c.account.is(&capture)
	}
	return capture, err
}

// plain refuses parameters and a body where a call takes none.
func (c *call) plain() error {
	err := c.query(nil)
	if err == nil && c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		err = c.readBody(&struct{}{})
	}
	return err
}

func (h *Handler) get(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	capture, err := h.find(c, c.vars[0])
	if err != nil {
		return err
	}
	answer(c, http.StatusOK, whole(capture))
	return nil
}

func (h *Handler) stop(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	capture, err := h.daemon.Stop(c.r.Context(), c.vars[0])
	if err != nil {
		return err
	}
	answer(c, http.StatusOK, whole(capture))
	return nil
}

func (h *Handler) retry(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	capture, err := h.daemon.Retry(c.r.Context(), c.vars[0])
	if err != nil {
		return err
	}
	answer(c, http.StatusOK, whole(capture))
	return nil
}

func (h *Handler) remove(c *call) error {
	var force bool
	if err := c.query(map[string]*bool{"force": &force}); err != nil {
		return err
	}
	c.account.force = force
	if force && !c.grant.all {
		return forbidden("force", fmt.Sprintf("%s may not remove what is not delivered", c.peer), "leave force out, or have somebody of the control group do it")
	}
	if err := c.readBody(&struct{}{}); err != nil {
		return err
	}
	if err := h.daemon.Remove(c.r.Context(), c.vars[0], force); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Handler) file(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	name := c.vars[1]
	c.account.file = name
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
		return noSuchFile(name)
	}
	f, file, err := h.daemon.OpenFile(c.vars[0], name)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := fileSize(f)
	if err != nil {
		return err
	}
	header := c.w.Header()
	header.Set("Content-Type", contentType(file.Name))
	header.Set("Content-Length", strconv.FormatInt(size, 10))
	header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": file.Name}))
	c.w.WriteHeader(http.StatusOK)
	return c.send(f, size)
}

func noSuchFile(name string) *wire.Error {
	return &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNoSuchFile, Message: fmt.Sprintf("the capture has no file %s here", shown(name)), Hint: "capctl show names the files and says where they went"}
}

func fileSize(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("size of a capture's file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", info.Name())
	}
	return info.Size(), nil
}

// send copies n bytes of a file to the client, after the header.
func (c *call) send(f *os.File, n int64) error {
	if c.r.Method == http.MethodHead {
		return nil
	}
	if _, err := io.CopyN(c.w, f, n); err != nil {
		return fmt.Errorf("%w: %w", errCut, err)
	}
	return nil
}

// contentType names a file's form by its last ending.
func contentType(name string) string {
	switch name[strings.LastIndexByte(name, '.')+1:] {
	case "pcapng":
		return "application/x-pcapng"
	case "pcap":
		return "application/vnd.tcpdump.pcap" // IANA
	case "zst":
		return "application/zstd" // RFC 8878
	case "json":
		return "application/json"
	}
	return "application/octet-stream"
}

func (h *Handler) destinations(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	list := wire.DestinationList{Destinations: h.daemon.Destinations()}
	if list.Destinations == nil {
		list.Destinations = []wire.Destination{}
	}
	answer(c, http.StatusOK, list)
	return nil
}

func (h *Handler) check(c *call) error {
	name := c.vars[0]
	c.account.destination = name
	if e := c.grant.reaches(name); e != nil {
		return e
	}
	if err := c.query(nil); err != nil {
		return err
	}
	if err := c.readBody(&struct{}{}); err != nil {
		return err
	}
	check, err := h.daemon.CheckDestination(c.r.Context(), name)
	if err != nil {
		return err
	}
	if check.Steps == nil {
		check.Steps = []wire.CheckStep{}
	}
	answer(c, http.StatusOK, check)
	return nil
}

func (h *Handler) explain(c *call) error {
	var req wire.StartRequest
	if err := c.readBody(&req); err != nil {
		return err
	}
	if err := c.query(nil); err != nil {
		return err
	}
	if e := validateRequest(&req); e != nil {
		return e
	}
	explain, err := h.daemon.Explain(c.r.Context(), req)
	if err != nil {
		return err
	}
	if explain.Hooks == nil {
		explain.Hooks = []string{}
	}
	if explain.Warnings == nil {
		explain.Warnings = []wire.Warning{}
	}
	answer(c, http.StatusOK, explain)
	return nil
}

func (h *Handler) status(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	answer(c, http.StatusOK, h.daemon.Status())
	return nil
}

func (h *Handler) doctor(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	answer(c, http.StatusOK, h.daemon.Doctor())
	return nil
}

func (h *Handler) metrics(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	send(c, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", h.daemon.Metrics())
	return nil
}
