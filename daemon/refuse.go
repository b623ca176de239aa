package daemon

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// turnAwayTime bounds how long connections are taken to be ended. Those that wait are
// there at once.
const turnAwayTime = 100 * time.Millisecond

// Refuse is for a start that cannot be, because of the configuration: under a service
// manager it tells out what to do then, and ends the connections that wait. For each start
// that fails they would cause another.
func Refuse(out io.Writer) {
	if os.Getenv("NOTIFY_SOCKET") != "" {
		fmt.Fprintln(out, "capd: when that is mended: systemctl restart capd")
	}
	turnAway()
}

// turnAway ends the connections that wait at the service manager's socket for a start that
// has failed, so that whoever waits is told so now.
func turnAway() {
	listeners, err := activation.Listeners()
	if err != nil {
		return // nothing waits
	}
	for _, l := range listeners {
		at, ok := l.(*net.UnixListener)
		if !ok || at.SetDeadline(time.Now().Add(turnAwayTime)) != nil {
			continue
		}
		for {
			c, err := at.Accept()
			if err != nil {
				break
			}
			c.Close()
		}
	}
}
