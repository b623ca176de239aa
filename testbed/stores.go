package testbed

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/crypto/ssh"
)

// server is a process that listens on loopback and can be stopped and started again at
// the same port.
type server struct {
	t       testing.TB
	command func() *exec.Cmd
	address string

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

// Start starts a stopped server and waits until it answers.
func (s *server) Start() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	cmd := s.command()
	log, err := os.CreateTemp(s.t.TempDir(), "server-log")
	if err != nil {
		s.t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	// No Pdeathsig: it follows the thread that forked, and tests throw threads away.
	if err := cmd.Start(); err != nil {
		s.t.Fatalf("start %s: %v", cmd.Path, err)
	}
	exited := make(chan struct{})
	go func() {
		cmd.Wait()
		log.Close()
		close(exited)
	}()
	s.cmd, s.exited = cmd, exited
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		conn, err := net.DialTimeout("tcp", s.address, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-exited:
			text, _ := os.ReadFile(log.Name())
			s.t.Fatalf("%s ended at once: %s", cmd.Path, text)
		case <-time.After(20 * time.Millisecond):
		}
	}
	s.t.Fatalf("%s does not answer on %s", cmd.Path, s.address)
}

// Stop kills the server and its sessions.
func (s *server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	pid := s.cmd.Process.Pid
	syscall.Kill(pid, syscall.SIGSTOP) // no new sessions
	for _, session := range descendants(pid) {
		syscall.Kill(session, syscall.SIGKILL)
	}
	s.cmd.Process.Kill()
	<-s.exited
	s.cmd = nil
}

// descendants gives the processes below one: sshd's sessions have groups of their own.
func descendants(pid int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		var child, parent int
		var state string
		fmt.Sscan(string(text), &child)
		_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
		if _, err := fmt.Sscan(rest, &state, &parent); err == nil {
			children[parent] = append(children[parent], child)
		}
	}
	var found []int
	for _, child := range children[pid] {
		found = append(append(found, child), descendants(child)...)
	}
	return found
}

// FreeAddress gives an address on loopback that nobody listens on. Its port is none that
// the kernel gives to connections by itself (ip_local_port_range, by default from 32768 on):
// else one could have it by the time that a server wants it, even one to itself, from
// knocking while the server is away.
func FreeAddress(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 10_000+mathrand.IntN(20_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
	t.Fatal("no port is free")
	return ""
}

// SSHD is an OpenSSH server for SFTP alone, on loopback.
type SSHD struct {
	server
	Address    string // 127.0.0.1:port
	User       string // who runs the tests
	Root       string // the folder in which sessions begin
	PrivateKey string // path of a key that may log in
	KnownHosts string // path of a file with the host keys
	HostKey    string // the Ed25519 host key: "ssh-ed25519 AAAA…"
	ECDSAKey   string // the other host key
}

// NewSSHD starts an SSHD that lasts as long as the test. Its lines stand first in
// sshd_config, and the first to set something counts; %ROOT% in them is the folder in
// which sessions begin.
func NewSSHD(t testing.TB, lines ...string) *SSHD {
	t.Helper()
	binary := "/usr/sbin/sshd" // it starts itself anew and wants its whole path
	if _, err := os.Stat(binary); err != nil {
		Lacking(t, "OpenSSH's sshd (contrib/test installs it)")
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// sshd's empty folder for its unprivileged half; systemd makes it elsewhere.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	s := &SSHD{Address: FreeAddress(t), User: me.Username, Root: filepath.Join(dir, "root"),
		PrivateKey: filepath.Join(dir, "user_key"), KnownHosts: filepath.Join(dir, "known_hosts")}
	s.HostKey = sshKey(t, filepath.Join(dir, "host_ed25519"), false)
	s.ECDSAKey = sshKey(t, filepath.Join(dir, "host_ecdsa"), true)
	userKey := sshKey(t, s.PrivateKey, false)
	_, port, _ := net.SplitHostPort(s.Address)
	known := fmt.Sprintf("[127.0.0.1]:%s %s\n[127.0.0.1]:%s %s\n", port, s.HostKey, port, s.ECDSAKey)
	pam := "no"
	if lockedAccount(me.Username) {
		pam = "yes" // without PAM sshd refuses an account whose password is locked, even by key
	}
	config := strings.ReplaceAll(strings.Join(lines, "\n"), "%ROOT%", s.Root) + fmt.Sprintf(`
ListenAddress %s
HostKey %s/host_ed25519
HostKey %s/host_ecdsa
AuthorizedKeysFile %s/authorized_keys
PidFile none
UsePAM %s
UseDNS no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
LogLevel VERBOSE
Subsystem sftp internal-sftp
ForceCommand internal-sftp -d %s
`, s.Address, dir, dir, dir, pam, s.Root)
	writeFile(t, s.KnownHosts, known, 0o644)
	writeFile(t, filepath.Join(dir, "authorized_keys"), userKey+"\n", 0o600)
	writeFile(t, filepath.Join(dir, "sshd_config"), config, 0o600)
	if err := os.Mkdir(s.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	s.server = server{t: t, address: s.Address, command: func() *exec.Cmd {
		return exec.Command(binary, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	}}
	t.Cleanup(s.Stop)
	s.Start()
	return s
}

// lockedAccount says whether a user's password is locked in /etc/shadow.
func lockedAccount(name string) bool {
	shadow, err := os.ReadFile("/etc/shadow")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(shadow)) {
		if fields := strings.Split(line, ":"); len(fields) > 1 && fields[0] == name {
			return strings.HasPrefix(fields[1], "!")
		}
	}
	return false
}

// sshKey writes a new private key and gives the public one as it stands in
// authorized_keys.
func sshKey(t testing.TB, path string, nist bool) string {
	t.Helper()
	var private, public any
	var err error
	if nist {
		var key *ecdsa.PrivateKey
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err == nil {
			private, public = key, key.Public()
		}
	} else {
		public, private, err = ed25519.GenerateKey(rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "capd test")
	if err != nil {
		t.Fatal(err)
	}
	sshPublic, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, string(pem.EncodeToMemory(block)), 0o600)
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshPublic)))
}

func writeFile(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// S3 is a versitygw over a folder, on loopback.
type S3 struct {
	server
	Address     string // 127.0.0.1:port
	Endpoint    string // http(s)://127.0.0.1:port
	Region      string
	Bucket      string // there already
	Root        string // the folder; an object lies in Root/Bucket/KEY
	CAFile      string // of the authority that signed the server's certificate; "" without TLS
	AccessKeyID string
	Secret      string
	SecretFile  string // path of a file that holds it
}

// S3Options choose what kind of S3 server NewS3 starts.
type S3Options struct {
	TLS     bool
	Expired bool // the certificate is

	VirtualDomain string // take BUCKET.VirtualDomain as the bucket's host too; "" = path style alone
}

// NewS3 starts an S3 server that lasts as long as the test.
func NewS3(t testing.TB, o S3Options) *S3 {
	t.Helper()
	binary := versitygw(t)
	dir := t.TempDir()
	s := &S3{Address: FreeAddress(t), Region: "us-east-1", Bucket: "captures", Root: filepath.Join(dir, "root"),
		AccessKeyID: "capdtest", Secret: "not-a-secret-" + filepath.Base(dir), SecretFile: filepath.Join(dir, "secret")}
	s.Endpoint = "http://" + s.Address
	writeFile(t, s.SecretFile, s.Secret+"\n", 0o600)
	for _, d := range []string{s.Root, filepath.Join(dir, "sidecar"), filepath.Join(dir, "iam"), filepath.Join(s.Root, s.Bucket)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"--port", s.Address, "--access", s.AccessKeyID, "--secret", s.Secret, "--region", s.Region, "--quiet",
		"--iam-dir", filepath.Join(dir, "iam"), "--iam-cache-disable"}
	if o.TLS {
		s.Endpoint = "https://" + s.Address
		s.CAFile = filepath.Join(dir, "ca.pem")
		certificate(t, dir, s.CAFile, o.Expired)
		args = append(args, "--cert", filepath.Join(dir, "cert.pem"), "--key", filepath.Join(dir, "key.pem"))
	}
	if o.VirtualDomain != "" {
		args = append(args, "--virtual-domain", o.VirtualDomain)
	}
	// A sidecar keeps metadata off the file system's extended attributes, which not
	// every test machine has.
	args = append(args, "posix", "--sidecar", filepath.Join(dir, "sidecar"), s.Root)
	s.server = server{t: t, address: s.Address, command: func() *exec.Cmd { return exec.Command(binary, args...) }}
	t.Cleanup(s.Stop)
	s.Start()
	return s
}

// Client gives a client of its own for what a test wants to see or prepare.
func (s *S3) Client() *minio.Client {
	s.t.Helper()
	c, err := s.client()
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *S3) client() (*minio.Client, error) {
	o := &minio.Options{Creds: credentials.NewStaticV4(s.AccessKeyID, s.Secret, ""), Region: s.Region}
	if s.CAFile != "" {
		pem, err := os.ReadFile(s.CAFile)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		o.Secure, o.Transport = true, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	}
	return minio.New(s.Address, o)
}

// NewUser makes an account that has no right to anything until Allow gives it some. It
// gives its name and the path of a file with its secret.
func (s *S3) NewUser(name string) (accessKeyID, secretFile string) {
	s.t.Helper()
	secret := "not-a-secret-of-" + name
	secretFile = s.SecretFile + "." + name
	writeFile(s.t, secretFile, secret+"\n", 0o600)
	Run(s.t, versitygw(s.t), "admin", "--access", s.AccessKeyID, "--secret", s.Secret, "--region", s.Region, "--endpoint-url", s.Endpoint, "--allow-insecure",
		"create-user", "--access", name, "--secret", secret, "--role", "user")
	return name, secretFile
}

// Allow gives an account every right to the bucket, or takes all away from everybody but
// the owner.
func (s *S3) Allow(accessKeyID string, allowed bool) error {
	effect := map[bool]string{true: "Allow", false: "Deny"}[allowed]
	c, err := s.client()
	if err != nil {
		return err
	}
	return c.SetBucketPolicy(context.Background(), s.Bucket, fmt.Sprintf(`{"Version": "2012-10-17", "Statement": [{"Effect": %q, "Principal": {"AWS": [%q]},
		"Action": ["s3:*"], "Resource": ["arn:aws:s3:::%s", "arn:aws:s3:::%s/*"]}]}`, effect, accessKeyID, s.Bucket, s.Bucket))
}

// versitygw finds or builds the S3 server.
func versitygw(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("CAPD_VERSITYGW"); path != "" {
		return path
	}
	root := RepositoryRoot(t)
	path := filepath.Join(root, "bin", "versitygw")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	t.Log("building versitygw: this takes a minute or two, once")
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	built := fmt.Sprintf("%s.%d", path, os.Getpid()) // renamed when it is whole: other tests may build it too
	cmd := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join(root, "tools", "testing"), "-o", built, "github.com/versity/versitygw/cmd/versitygw")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build versitygw: %v\n%s", err, out)
	}
	if err := os.Rename(built, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// RepositoryRoot is the folder of capd's go.mod; those of the modules under tools are
// passed over.
func RepositoryRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if text, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(text), "module capd\n") {
			return dir
		}
	}
	t.Fatal("the tests do not run inside the repository")
	return ""
}

// certificate makes an authority and a certificate of 127.0.0.1 and localhost.
func certificate(t testing.TB, dir, caFile string, expired bool) {
	t.Helper()
	now := time.Now()
	authority := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "capd test authority"},
		NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "capd test server"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour), DNSNames: []string{"localhost", "*.localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if expired {
		leaf.NotAfter = now.Add(-time.Hour)
	}
	sign := func(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, caFile, string(sign(authority, authority, &caKey.PublicKey, caKey)), 0o644)
	writeFile(t, filepath.Join(dir, "cert.pem"), string(sign(leaf, authority, &key.PublicKey, caKey)), 0o644)
	writeFile(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), 0o600)
}

// Tree reads every file below a folder, by its path from there on; names that skip
// begins with are left out.
func Tree(t testing.TB, folder string, skip ...string) map[string][]byte {
	t.Helper()
	found := map[string][]byte{}
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // removed while we look
		}
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(folder, path)
		for _, s := range skip {
			if strings.HasPrefix(name, s) && e.IsDir() {
				return filepath.SkipDir
			}
		}
		if !e.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		if err == nil {
			found[name] = data
		} else if !os.IsNotExist(err) {
			return err
		}
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return found
}
