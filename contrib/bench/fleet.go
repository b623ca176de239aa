package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// fleetHosts is how many boxes the row asks: addresses of loopback that one sshd listens
// on, each with a login of its own, before one capd.
const fleetHosts = 50

// fleet compares capctl -H list on many boxes with ssh to the same ones that does nothing.
func fleet(b *bench) ([]figure, error) {
	ratio := figure{What: fmt.Sprintf("capctl -H list of %d hosts against ssh HOST true to the same, all at once", fleetHosts), Unit: "×", Target: "≤ 1.5", Command: "capctl -H @bench list"}
	list := figure{What: fmt.Sprintf("capctl -H list of %d hosts", fleetHosts), Unit: "ms", Command: "capctl -H @bench list"}
	plain := figure{What: fmt.Sprintf("ssh HOST true to %d hosts", fleetHosts), Unit: "ms", Command: "ssh HOST true"}
	err := b.withCapd(anyCPU, "auto", func(d *capd) error {
		f, err := newFleet(b, d)
		if err != nil {
			return err
		}
		defer f.stop()
		for n := range b.repeats + 1 {
			none, err := f.ssh()
			if err != nil {
				return err
			}
			all, err := f.list()
			if err != nil {
				return err
			}
			b.log("  ssh true %v, list %v", none.Round(time.Millisecond), all.Round(time.Millisecond))
			if n == 0 {
				continue // caches are cold
			}
			plain.Spread = append(plain.Spread, float64(none)/1e6)
			list.Spread = append(list.Spread, float64(all)/1e6)
			ratio.Spread = append(ratio.Spread, float64(all)/float64(none))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := []figure{ratio, list, plain}
	for i := range out {
		out[i].Value = median(out[i].Spread)
	}
	out[0].Met = out[0].Value <= 1.5
	return out, nil
}

// sshFleet is an sshd, and a configuration of ssh and capctl that knows it by many names.
type sshFleet struct {
	b      *bed
	d      *capd
	server *exec.Cmd
	config string
	hosts  []string
}

func newFleet(b *bench, d *capd) (*sshFleet, error) {
	dir, err := os.MkdirTemp(b.bed.dir, "fleet-")
	if err != nil {
		return nil, err
	}
	f := &sshFleet{b: b.bed, d: d, config: filepath.Join(dir, "ssh_config")}
	host, err := writeKey(filepath.Join(dir, "host"))
	if err != nil {
		return nil, err
	}
	user, err := writeKey(filepath.Join(dir, "user"))
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		return nil, err
	}
	var known, group strings.Builder
	group.WriteString("bench:")
	for i := range fleetHosts {
		address := fmt.Sprintf("127.0.1.%d", i+1)
		f.hosts = append(f.hosts, address)
		fmt.Fprintf(&known, "[%s]:%s %s\n", address, port, host)
		fmt.Fprintf(&group, " %s", address)
	}
	for name, text := range map[string]string{
		"known": known.String(), "keys": user + "\n", "hosts": group.String() + "\n",
		"ssh_config": fmt.Sprintf("Port %s\nUser root\nIdentityFile %s/user\nIdentitiesOnly yes\nUserKnownHostsFile %s/known\n", port, dir, dir),
		"sshd_config": fmt.Sprintf("Port %s\nListenAddress 0.0.0.0\nHostKey %s/host\nAuthorizedKeysFile %s/keys\nPidFile none\nUsePAM no\nUseDNS no\nStrictModes no\nPermitRootLogin prohibit-password\nMaxStartups 1000\nSetEnv PATH=%s:/usr/bin:/bin CAPD_SOCKET=%s\n",
			port, dir, dir, d.bin, d.socket),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return nil, err
	}
	f.server = exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	if err := f.server.Start(); err != nil {
		return nil, err
	}
	err = await("sshd", 10*time.Second, func() (bool, error) {
		c, err := net.Dial("tcp", net.JoinHostPort(f.hosts[0], port))
		if err == nil {
			err = c.Close()
		}
		return err == nil, nil
	})
	if err != nil {
		f.stop()
		return nil, err
	}
	return f, nil
}

// writeKey makes a key and gives its public half.
func writeKey(path string) (string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return "", err
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key))), os.WriteFile(path, pem.EncodeToMemory(block), 0o600)
}

func (f *sshFleet) stop() {
	_ = f.server.Process.Signal(syscall.SIGTERM)
	_ = f.server.Wait()
}

// ssh runs true on all hosts at once.
func (f *sshFleet) ssh() (time.Duration, error) {
	errs := make([]error, len(f.hosts))
	var all sync.WaitGroup
	start := time.Now()
	for i, host := range f.hosts {
		all.Go(func() {
			if out, err := exec.Command("ssh", "-F", f.config, "-T", "--", host, "true").CombinedOutput(); err != nil {
				errs[i] = fmt.Errorf("ssh %s: %w: %s", host, err, out)
			}
		})
	}
	all.Wait()
	return time.Since(start), errors.Join(errs...)
}

// list runs capctl list on all hosts at once.
func (f *sshFleet) list() (time.Duration, error) {
	cmd := exec.Command(filepath.Join(f.d.bin, "capctl"), "-H", "@bench", "--json", "list")
	cmd.Env = append(os.Environ(), "CAPCTL_SSH=ssh -F "+f.config, "CAPCTL_HOSTS="+filepath.Join(filepath.Dir(f.config), "hosts"))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	start := time.Now()
	out, err := cmd.Output()
	took := time.Since(start)
	if err != nil {
		return took, fmt.Errorf("capctl -H @bench list: %w: %s%s", err, out, stderr.String())
	}
	if n := bytes.Count(out, []byte(`"exit_code":0`)); n != len(f.hosts) {
		return took, fmt.Errorf("%d of %d hosts answered: %s", n, len(f.hosts), out)
	}
	return took, nil
}
