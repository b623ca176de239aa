package ctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"capd/ctl/client"
	"capd/ctl/wire"
)

// Exit codes, as scripts rely on them.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3 // the daemon cannot be reached
	exitForbidden   = 4
	exitNotFound    = 5 // no such capture or destination
	exitLimit       = 6 // a limit of this box refuses it
	exitDelivery    = 7 // the destination check, or with --wait the capture or its delivery, failed
	exitLoss        = 8 // with --wait: delivered, but packets were lost, or what was lost is not known
)

// exits is the one place where capd's error codes become exit codes. The hint is used
// where capd sends none of its own.
var exits = map[string]struct {
	exit int
	hint string
}{
	wire.CodeBadRequest:             {exitUsage, ""},
	wire.CodeInvalid:                {exitUsage, ""},
	wire.CodeUnknownField:           {exitUsage, ""},
	wire.CodeTooLarge:               {exitUsage, "a request may have 1 MiB"},
	wire.CodeForbidden:              {exitForbidden, "root and the members of capd's control group may do this, see [access] in /etc/capd/capd.toml"},
	wire.CodeNoSuchCapture:          {exitNotFound, "capctl list --all shows what there is"},
	wire.CodeNoSuchDestination:      {exitNotFound, "capctl destination list shows what there is"},
	wire.CodeLimit:                  {exitLimit, "see [limits] in /etc/capd/capd.toml"},
	wire.CodeNoSpace:                {exitLimit, "capctl rm makes room; see also spool_size and min_free_space in /etc/capd/capd.toml"},
	wire.CodeDestinationUnreachable: {exitDelivery, "capctl destination check NAME shows each step"},
	wire.CodeDestinationRefused:     {exitDelivery, "capctl destination check NAME shows each step"},
	wire.CodeDestinationExists:      {exitDelivery, ""},
	wire.CodeNotFound:               {exitFailed, "capctl and capd may be of different versions: capctl version"},
	wire.CodeMethodNotAllowed:       {exitFailed, "capctl and capd may be of different versions: capctl version"},
	wire.CodeNoSuchFile:             {exitFailed, "capctl show CAPTURE tells where each file is"},
	wire.CodeConflict:               {exitFailed, ""},
	wire.CodeAmbiguous:              {exitFailed, "give more of the id: capctl list --all"},
	wire.CodeNameTaken:              {exitFailed, "choose another name, or stop the capture that has it"},
	wire.CodeUndelivered:            {exitFailed, "capctl retry CAPTURE delivers it, capctl download CAPTURE fetches it, capctl rm --force CAPTURE throws it away"},
	wire.CodeUnsupported:            {exitFailed, ""},
	wire.CodeUnavailable:            {exitFailed, "journalctl -u capd"},
	wire.CodeStopping:               {exitUnreachable, "systemctl status capd"},
	wire.CodeInterrupted:            {exitDelivery, "capctl show CAPTURE tells what was lost"},
	wire.CodeInternal:               {exitFailed, "journalctl -u capd"},
}

// exitError is an error that capctl itself finds, with its exit code.
type exitError struct {
	exit    int
	message string
	hint    string
	excerpt []string // lines that show where; between message and hint
}

// Error implements error.
func (e *exitError) Error() string { return e.message }

// usagef makes an error in what the user typed. A hint follows it with withHint.
func usagef(format string, args ...any) *exitError {
	return &exitError{exit: exitUsage, message: fmt.Sprintf(format, args...)}
}

// unreadable is the error of a path that was given, without the name of a system call.
func unreadable(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return failf("%s: %v", path.Path, path.Err)
	}
	return failf("%v", err)
}

// failf makes an error of the general kind.
func failf(format string, args ...any) *exitError {
	return &exitError{exit: exitFailed, message: fmt.Sprintf(format, args...)}
}

func (e *exitError) withHint(format string, args ...any) *exitError {
	e.hint = fmt.Sprintf(format, args...)
	return e
}

// verdict says how an error ends capctl: its exit code, the line and the hint.
func verdict(err error) (exit int, message, hint string) {
	var own *exitError
	var answered *wire.Error
	var unreachable *client.UnreachableError
	switch {
	case err == nil:
		return exitDone, "", ""
	case errors.As(err, &own):
		return own.exit, err.Error(), own.hint
	case errors.As(err, &answered):
		message, hint = err.Error(), answered.Hint
		if f := answered.Field; f != "" && !strings.Contains(message, f) {
			message = f + ": " + message
		}
		known, ok := exits[answered.Code]
		if !ok {
			known.exit = exitByStatus(answered.Status)
		}
		if hint == "" {
			hint = known.hint
		}
		return known.exit, message, hint
	case errors.As(err, &unreachable):
		return exitUnreachable, err.Error(), unreachable.Hint
	case errors.Is(err, context.DeadlineExceeded):
		return verdict(hangs())
	case errors.Is(err, context.Canceled):
		return exitFailed, "interrupted", ""
	}
	return exitFailed, err.Error(), ""
}

// hangs is the error of a call that should have been quick.
func hangs() error {
	return &client.UnreachableError{
		Err:  context.DeadlineExceeded,
		What: "it takes the call and does not answer",
		Hint: "journalctl -u capd, then systemctl restart capd",
	}
}

// isAnswer reports whether capd itself refused something.
func isAnswer(err error) bool {
	var answered *wire.Error
	return errors.As(err, &answered)
}

// exitByStatus serves codes that a newer capd may send.
func exitByStatus(status int) int {
	switch status {
	case 400, 413, 422:
		return exitUsage
	case 403:
		return exitForbidden
	case 429, 507:
		return exitLimit
	}
	return exitFailed
}

// report prints an error as one line, where it has one the place below it, its hint as
// another line, and returns the exit code.
func (a *app) report(err error) int {
	exit, message, hint := verdict(err)
	if message != "" {
		fmt.Fprintf(a.stderr, "capctl: %s\n", oneLine(message))
	}
	var own *exitError
	if errors.As(err, &own) {
		for _, line := range own.excerpt {
			fmt.Fprintln(a.stderr, line)
		}
	}
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", oneLine(hint))
	}
	return exit
}

// each does something to several captures, tells every error as it happens, and returns
// the first, to be the exit code but not to be told again.
func (a *app) each(ctx context.Context, refs []string, do func(ctx context.Context, ref string) error) error {
	if len(refs) == 1 {
		return do(ctx, refs[0])
	}
	first := exitDone
	for _, ref := range refs {
		if err := do(ctx, ref); err != nil {
			if exit := a.report(fmt.Errorf("%s: %w", ref, err)); first == exitDone {
				first = exit
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	if first == exitDone {
		return nil
	}
	return &exitError{exit: first}
}
