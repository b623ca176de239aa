package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"capd/ctl/wire"
)

// Handler answers the calls of the control socket. It is safe for concurrent use.
type Handler struct {
	daemon Daemon
	logger *slog.Logger
	gate   gate
	routes []route
}

var _ http.Handler = (*Handler)(nil)

// New makes a Handler. The server that runs it must set ConnContext, as NewServer does.
func New(d Daemon, access Access, logger *slog.Logger) *Handler {
	h := &Handler{daemon: d, logger: logger, gate: gate{logger: logger}}
	h.SetAccess(access)
	h.routes = append(h.captureRoutes(), h.modelRoutes()...)
	return h
}

// SetAccess puts other groups in force, for the calls that follow.
func (h *Handler) SetAccess(a Access) { h.gate.set(a) }

// route is one call. In its pattern a segment in braces matches any one segment.
type route struct {
	method  string
	pattern []string
	needs   right
	does    string // for people: "stop captures"
	audit   string // the action's name in the journal; "" = not written down
	serve   func(*call) error
}

// call is one request on its way.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	peer    Peer
	grant   grant
	route   *route
	vars    []string // what the pattern's braces matched
	account account  // for the audit line
}

// bodyTimeout is how long a client may take to send a body, and answerTimeout to take
// an answer that is not a file.
const (
	bodyTimeout   = 30 * time.Second
	answerTimeout = 30 * time.Second
)

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	handle(r.Context())
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	model := strings.HasPrefix(r.URL.Path, wire.PathModelAPI)

	c := &call{w: w, r: r}
	route, err := h.route(c)
	c.route = route
	if err == nil {
		err = h.admit(c, route)
	}
	if err == nil {
		err = h.run(c, route)
	}
	if errors.Is(err, errCut) {
		h.audit(c, route, resultCut, "")
		panic(http.ErrAbortHandler) // net/http cuts the connection, so that nobody takes the file for whole
	}
	failure, result, reason := h.failure(c, err), resultOK, ""
	if failure != nil {
		result, reason = failure.Code, failure.Message
	}
	if route != nil && route.audit != "" {
		h.audit(c, route, result, reason)
	}
	if failure == nil {
		return
	}
	if model {
		answerModelError(c, failure)
		return
	}
	answer(c, failure.Status, wire.ErrorBody{Error: *failure})
}

// route gives the route of a request, and what its pattern matched.
func (h *Handler) route(c *call) (*route, error) {
	segments := strings.Split(strings.TrimPrefix(c.r.URL.EscapedPath(), "/"), "/")
	for i, s := range segments {
		plain, err := url.PathUnescape(s)
		if err != nil {
			return nil, &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: "the path is not one: " + err.Error()}
		}
		segments[i] = plain
	}
	method := c.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	var allow []string
	for i := range h.routes {
		rt := &h.routes[i]
		vars, ok := rt.match(segments)
		if !ok {
			continue
		}
		if rt.method == method {
			c.vars = vars
			return rt, nil
		}
		allow = append(allow, rt.method)
	}
	if allow == nil {
		return nil, &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNotFound,
			Message: fmt.Sprintf("there is no %s here", shown(c.r.URL.Path)), Hint: "paths begin with " + strings.Join([]string{wire.PathCaptures, wire.PathDestinations, wire.PathExplain, wire.PathStatus}, ", ")}
	}
	if slices.Contains(allow, http.MethodGet) {
		allow = append(allow, http.MethodHead)
	}
	slices.Sort(allow)
	c.w.Header().Set("Allow", strings.Join(allow, ", "))
	return nil, &wire.Error{Status: http.StatusMethodNotAllowed, Code: wire.CodeMethodNotAllowed,
		Message: fmt.Sprintf("%s does not take %s", shown(c.r.URL.Path), shown(c.r.Method)), Hint: "it takes " + strings.Join(allow, ", ")}
}

func (rt *route) match(segments []string) (vars []string, ok bool) {
	if len(segments) != len(rt.pattern) {
		return nil, false
	}
	for i, p := range rt.pattern {
		switch {
		case strings.HasPrefix(p, "{"):
			vars = append(vars, segments[i])
		case p != segments[i]:
			return nil, false
		}
	}
	return vars, true
}

// variables gives the segments of the pattern that match any.
func (rt *route) variables() []string {
	return slices.DeleteFunc(slices.Clone(rt.pattern), func(s string) bool { return !strings.HasPrefix(s, "{") })
}

// admit judges the caller.
func (h *Handler) admit(c *call, rt *route) error {
	if err := refuseBrowser(c.r); err != nil {
		return err
	}
	peer, err := peerFrom(c.r.Context())
	if err != nil {
		h.logger.Warn("a call without peer credentials was refused", "err", err)
		return forbidden("", "who calls cannot be told: "+err.Error(), "")
	}
	c.peer = peer
	n := slices.Index(rt.variables(), "{capture}")
	if n >= 0 {
		c.account.capture = c.vars[n] // for the audit line of a refusal, too
	}
	granted, e := h.gate.judge(peer, rt.needs, rt.does)
	if e != nil {
		return e
	}
	c.grant = granted
	if rt.needs == rightOwn {
		return h.own(c, rt, n)
	}
	return nil
}

// own finds the capture that the path of a call names, as its nth variable, judges whether the caller may
// have it, and puts its id in the name's place, so that what is judged is what is used.
func (h *Handler) own(c *call, rt *route, n int) error {
	capture, err := h.find(c, c.vars[n])
	if err != nil {
		return err
	}
	if !c.grant.owns(c.peer, capture) {
		e := forbidden("", fmt.Sprintf("%s may not %s of others", c.peer, rt.does), "")
		if capture.RequestedBy.User != "" {
			e.Hint = "this one was started by " + capture.RequestedBy.User
		}
		return e
	}
	c.vars[n] = capture.ID
	return nil
}

// refuseBrowser keeps out pages in a browser that found a way to the socket, through a
// proxy that somebody has put before it. A browser says so itself (Origin, Sec-Fetch-*),
// and names the host that it believes to be speaking to: an address, or a name with dots
// or a port. Who dials a Unix socket has no such host and writes a word: capd, unix,
// localhost.
func refuseBrowser(r *http.Request) error {
	for name := range r.Header {
		if name == "Origin" || strings.HasPrefix(name, "Sec-Fetch-") {
			return forbidden("", "calls from a browser are refused ("+name+" is set)", "use capctl, or curl --unix-socket")
		}
	}
	if strings.ContainsAny(r.Host, ".:[]") {
		return forbidden("", fmt.Sprintf("calls to the host %s are refused: it is one that a browser would name", shown(r.Host)), "call http://capd/... at the socket")
	}
	return nil
}

// run calls the route's function, and makes an error of a panic.
func (h *Handler) run(c *call, rt *route) (err error) {
	defer func() {
		if p := recover(); p != nil {
			h.logger.Error("a call panicked", "method", c.r.Method, "path", c.r.URL.Path, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = errPanicked
		}
	}()
	return rt.serve(c)
}

var (
	errPanicked = errors.New("panicked")
	// errCut ends a call whose answer could not be sent whole after its header was out.
	errCut = errors.New("cut short")
)

// failure makes the answer of an error, and logs those that are capd's own fault. Whatever
// call is the one that finds no file descriptor left is told so.
func (h *Handler) failure(c *call, err error) *wire.Error {
	if err == nil {
		return nil
	}
	var e *wire.Error
	if errors.As(err, &e) && e != nil {
		out := *e
		if out.Status < 400 || out.Status > 599 {
			out.Status = http.StatusInternalServerError
		}
		return &out
	}
	if errors.Is(err, context.Canceled) && c.r.Context().Err() != nil {
		return &wire.Error{Status: http.StatusServiceUnavailable, Code: wire.CodeUnavailable, Message: "the client went away"}
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		h.logger.Error("a call failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
		return &wire.Error{Status: http.StatusServiceUnavailable, Code: wire.CodeUnavailable, Message: "capd has no file descriptor left: " + err.Error(), Hint: "end some captures, streams or watches; LimitNOFILE= of capd.service is the limit"}
	}
	if !errors.Is(err, errPanicked) {
		h.logger.Error("a call failed", "method", c.r.Method, "path", c.r.URL.Path, "err", err)
	}
	return &wire.Error{Status: http.StatusInternalServerError, Code: wire.CodeInternal, Message: "capd failed at this", Hint: "journalctl -u capd says why"}
}

// readBody reads a JSON body into dst, strictly; an empty one is {}.
func (c *call) readBody(dst any) error {
	tooLarge := &wire.Error{Status: http.StatusRequestEntityTooLarge, Code: wire.CodeTooLarge, Message: "the body is larger than 1 MiB"}
	if enc := c.r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: fmt.Sprintf("the body is encoded as %s", shown(enc)), Hint: "send it as it is"}
	}
	if c.r.ContentLength > wire.MaxRequestBody {
		return tooLarge
	}
	deadline := http.NewResponseController(c.w)
	_ = deadline.SetReadDeadline(time.Now().Add(bodyTimeout)) // a recorder in a test has none
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, wire.MaxRequestBody))
	_ = deadline.SetReadDeadline(time.Time{})
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: fmt.Sprintf("the body did not arrive within %s", bodyTimeout)}
	case err != nil:
		return &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: "the body did not arrive whole: " + err.Error()}
	}
	if e := decodeJSON(body, dst); e != nil {
		return e
	}
	return nil
}

// query reads the query's parameters, each of which is true or false, into flags.
func (c *call) query(flags map[string]*bool) error {
	values, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return &wire.Error{Status: http.StatusBadRequest, Code: wire.CodeBadRequest, Message: "the query is not one: " + err.Error()}
	}
	for name, given := range values {
		dst, ok := flags[name]
		if !ok {
			known := make([]string, 0, len(flags))
			for k := range flags {
				known = append(known, k)
			}
			e := unknownField(name, name, known)
			e.Message = fmt.Sprintf("unknown parameter %s", shown(name))
			return e
		}
		if len(given) != 1 || (given[0] != "true" && given[0] != "false") {
			return invalid(name, fmt.Sprintf("%s is %s", name, shown(strings.Join(given, ","))), "write "+name+"=true or "+name+"=false")
		}
		*dst = given[0] == "true"
	}
	return nil
}

// answer sends v as JSON.
func answer(c *call, status int, v any) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		status = http.StatusInternalServerError
		b.Reset()
		b.WriteString(`{"error":{"code":"` + wire.CodeInternal + `","message":"the answer cannot be written as JSON"}}` + "\n")
	}
	send(c, status, "application/json", b.Bytes())
}

// send sends an answer that is at hand as a whole.
func send(c *call, status int, contentType string, body []byte) {
	_ = http.NewResponseController(c.w).SetWriteDeadline(time.Now().Add(answerTimeout)) // a recorder in a test has none
	c.w.Header().Set("Content-Type", contentType)
	c.w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body) // a client that went away is no concern of ours
}

// shown quotes foreign text for a message, shortened where it is long.
func shown(s string) string {
	if len(s) > 64 {
		s = strings.ToValidUTF8(s[:60], "") + " ..."
	}
	return fmt.Sprintf("%q", s)
}

// invalid is the 422 of a value that makes no sense.
func invalid(field, message, hint string) *wire.Error {
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeInvalid, Message: message, Field: field, Hint: hint}
}
