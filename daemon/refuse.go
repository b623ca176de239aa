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

// Refuse is for a start that cannot be, because of the configuration. Under a service
// manager it ends the connections that wait at the socket: for each start that fails they
// would cause another, until the manager gives up. It tells out what to do then.
func Refuse(out io.Writer) {
	if os.Getenv("NOTIFY_SOCKET") != "" {
		fmt.Fprintln(out, "capd: when that is mended: systemctl restart capd; if it was started too often meanwhile, before that: systemctl reset-failed capd.service capd.socket")
	}
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
