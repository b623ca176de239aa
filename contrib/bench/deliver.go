package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/testbed"
)

// deliverSize is what is delivered, in bytes.
const deliverSize = 1 << 30

// keptFor lets testbed's servers run outside a test: their files lie in dir, and what
// they would have cleaned up at the end of a test is done by end.
type keptFor struct {
	testing.TB // nothing else of it is used
	dir        string
	clean      []func()
}

func (k *keptFor) Helper()                   {}
func (k *keptFor) Log(...any)                {}
func (k *keptFor) Cleanup(f func())          { k.clean = append(k.clean, f) }
func (k *keptFor) Fatal(args ...any)         { panic(fmt.Sprint(args...)) }
func (k *keptFor) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }
func (k *keptFor) Skipf(f string, a ...any)  { panic(fmt.Sprintf(f, a...)) }

func (k *keptFor) TempDir() string {
	dir, err := os.MkdirTemp(k.dir, "")
	if err != nil {
		panic(err.Error())
	}
	return dir
}

func (k *keptFor) end() error {
	for _, f := range slices.Backward(k.clean) {
		f()
	}
	return os.RemoveAll(k.dir)
}

// inBed runs f, which may panic as keptFor does, on a thread in namespace b.
func inBed(b *bed, f func()) error {
	return testbed.Do(b.b, func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("%v", p)
			}
		}()
		f()
		return nil
	})
}

// store is a server, how capd delivers to it, and another client for it.
type store struct {
	start, stop func()
	profiles    map[string]string // by what they are called in the table
	peers       map[string]func(file string) *exec.Cmd
}

func sftpStore(k *keptFor) store {
	s := testbed.NewSSHD(k)
	host, port, _ := net.SplitHostPort(s.Address)
	ask := func(batch string) func(string) *exec.Cmd {
		return func(file string) *exec.Cmd {
			cmd := exec.Command("sftp", "-q", "-b", "-", "-P", port, "-i", s.PrivateKey, "-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile="+s.KnownHosts, s.User+"@"+host)
			cmd.Stdin = strings.NewReader(strings.ReplaceAll(batch, "FILE", file))
			return cmd
		}
	}
	return store{s.Start, s.Stop, map[string]string{
		"readback": fmt.Sprintf("type = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\n", s.Address, s.User, s.PrivateKey, s.KnownHosts),
	}, map[string]func(string) *exec.Cmd{
		"sftp put":     ask("put FILE peer\n"),
		"sftp put+get": ask("put FILE peer2\nget peer2 FILE.back\n"),
	}}
}

func s3Store(k *keptFor) store {
	s := testbed.NewS3(k, testbed.S3Options{TLS: true})
	profile := fmt.Sprintf("type = \"s3\"\nendpoint = %q\nregion = %q\nbucket = %q\npath_style = true\nca_file = %q\naccess_key_id = %q\nsecret_access_key_file = %q\n",
		s.Endpoint, s.Region, s.Bucket, s.CAFile, s.AccessKeyID, s.SecretFile)
	return store{s.Start, s.Stop, map[string]string{"checksum": profile, "readback": profile + "verify = \"readback\"\n"}, map[string]func(string) *exec.Cmd{
		"rclone": func(file string) *exec.Cmd {
			cmd := exec.Command("rclone", "copyto", file, "B:"+s.Bucket+"/peer", "--config", "/dev/null", "--ca-cert", s.CAFile,
				"--s3-upload-concurrency", "4", "--s3-chunk-size", "64M", "--s3-disable-checksum", "--s3-no-check-bucket", "--s3-no-head")
			cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "AWS_") }), "RCLONE_CONFIG_B_TYPE=s3", "RCLONE_CONFIG_B_PROVIDER=Other", "RCLONE_CONFIG_B_FORCE_PATH_STYLE=true",
				"RCLONE_CONFIG_B_ENDPOINT="+s.Endpoint, "RCLONE_CONFIG_B_REGION="+s.Region, "RCLONE_CONFIG_B_ACCESS_KEY_ID="+s.AccessKeyID, "RCLONE_CONFIG_B_SECRET_ACCESS_KEY="+s.Secret)
			return cmd
		},
	}}
}

// speed is a rate and what it took.
type speed struct {
	rate, cpu float64 // bytes/s; ns of CPU a byte
	command   string
}

// delivery compares capd's delivery of a capture of deliverSize with another client's of
// the same bytes to the same server. The server's files are in memory, so that not its
// disk is measured.
func delivery(open func(*keptFor) store, against string) func(*bench) ([]figure, error) {
	return func(b *bench) (figures []figure, err error) {
		dir, err := os.MkdirTemp("/dev/shm", "capd-bench-")
		if err != nil {
			return nil, err
		}
		k := &keptFor{dir: dir}
		defer func() { err = errors.Join(err, k.end()) }()
		var to store
		if err := inBed(b.bed, func() { to = open(k) }); err != nil {
			return nil, err
		}
		toml := ""
		for name, p := range to.profiles {
			toml += fmt.Sprintf("[destination.%s]\n%s", name, p)
		}
		d, err := startCapd(b.bed, anyCPU, "auto", toml)
		if err != nil {
			return nil, err
		}
		defer d.stop()
		runs := map[string][]speed{}
		for range b.repeats {
			file := b.bed.path("whole")
			for name := range to.profiles {
				s, err := deliverOnce(b, d, to, name, file)
				if err != nil {
					return nil, err
				}
				runs["capd, "+name] = append(runs["capd, "+name], s)
			}
			for name, command := range to.peers {
				s, err := peerOnce(b, command(file))
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				runs[name] = append(runs[name], s)
			}
		}
		return compare(runs, against), nil
	}
}

func compare(runs map[string][]speed, against string) (figures []figure) {
	rate := func(name string) float64 {
		var v []float64
		for _, s := range runs[name] {
			v = append(v, s.rate)
		}
		return median(v)
	}
	names := make([]string, 0, len(runs))
	for name := range runs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		mb, cpu := figure{What: name + ": 1 GiB", Unit: "MB/s"}, figure{What: name + ": CPU of the client", Unit: "ns/byte"}
		for _, s := range runs[name] {
			mb.Spread, cpu.Spread = append(mb.Spread, s.rate/1e6), append(cpu.Spread, s.cpu)
			mb.Command = s.command
		}
		mb.Value, cpu.Value = median(mb.Spread), median(cpu.Spread)
		figures = append(figures, mb, cpu)
	}
	for _, name := range names {
		if !strings.HasPrefix(name, "capd") {
			continue
		}
		f := figure{What: name + " / " + against, Unit: "×", Target: "≥ 0.7", Value: rate(name) / rate(against)}
		f.Met = f.Value >= 0.7
		figures = append(figures, f)
	}
	return figures
}

// deliverOnce captures deliverSize bytes while the server is away, and measures from its
// return to the signed manifest. It leaves the same bytes in file.
func deliverOnce(b *bench, d *capd, to store, profile, file string) (speed, error) {
	if err := inBed(b.bed, to.stop); err != nil {
		return speed{}, err
	}
	size, no := wire.Size(deliverSize), false
	c, err := d.client.Start(context.Background(), wire.StartRequest{Hooks: []string{wire.HookPrerouting}, ByteLimit: &size, Destination: profile, Check: &no})
	if err != nil {
		return speed{}, err
	}
	err = await("1 GiB to be captured", 5*time.Minute, func() (bool, error) {
		_, err := testbed.Inject(b.bed.b, testbed.InjectOptions{Interface: device, Count: 100_000, Length: 1400})
		if err != nil {
			return false, err
		}
		now, err := d.client.Get(context.Background(), c.ID)
		return now.Stopped != nil && !slices.ContainsFunc(now.Files, func(f wire.File) bool { return f.Status == wire.FileUploading }), err
	})
	if err == nil {
		err = join(file, filepath.Join(filepath.Dir(d.socket), "spool", c.ID))
	}
	if err == nil {
		err = inBed(b.bed, to.start)
	}
	if err != nil {
		return speed{}, err
	}
	before, err := d.usage()
	if err != nil {
		return speed{}, err
	}
	start := time.Now()
	if _, err = d.client.Retry(context.Background(), c.ID); err != nil {
		return speed{}, err
	}
	if c, err = d.completed(c.ID); err != nil {
		return speed{}, err
	}
	took := time.Since(start)
	if c.Status != wire.StatusComplete {
		return speed{}, fmt.Errorf("the delivery failed: %+v", c.Error)
	}
	after, err := d.usage()
	if err != nil {
		return speed{}, err
	}
	s := speed{float64(c.Bytes.Delivered) / took.Seconds(), float64(after.total-before.total) / float64(c.Bytes.Delivered), "capctl start -d " + profile}
	b.log("  capd, %-24s %6.0f MB/s  %5.2f ns/byte, %d segments", profile, s.rate/1e6, s.cpu, len(c.Files))
	return s, d.client.Remove(context.Background(), c.ID, false)
}

// join puts the files of a folder into one.
func join(file, dir string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	parts, err := filepath.Glob(dir + "/*")
	for _, p := range parts {
		in, e := os.Open(p)
		if e == nil {
			_, e = io.Copy(out, in)
			e = errors.Join(e, in.Close())
		}
		err = errors.Join(err, e)
	}
	return err
}

// peerOnce measures another client.
func peerOnce(b *bench, cmd *exec.Cmd) (speed, error) {
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	start := time.Now()
	if err := testbed.Do(b.bed.b, cmd.Run); err != nil {
		return speed{}, fmt.Errorf("%w: %s", err, said.String())
	}
	took := time.Since(start)
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime() // with the children it waited for
	s := speed{deliverSize / took.Seconds(), float64(cpu) / deliverSize, strings.Join(cmd.Args[:min(3, len(cmd.Args))], " ")}
	b.log("  %-30s %6.0f MB/s  %5.2f ns/byte", s.command, s.rate/1e6, s.cpu)
	return s, nil
}
