package sftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"capd/daemon/deliver"
)

// connect makes a connection with its SFTP channel. steps, where not nil, is told of
// each step that went well.
func (s *Store) connect(ctx context.Context, steps *deliver.Steps) (*session, error) {
	ok := func(step, format string, args ...any) {
		if steps != nil {
			steps.OK(step, fmt.Sprintf(format, args...))
		}
	}
	auth, how, err := s.auth()
	if err != nil {
		return nil, &stepError{deliver.StepProfile, err}
	}
	keys, err := s.hostKeys()
	if err != nil {
		return nil, &stepError{deliver.StepProfile, err}
	}
	if steps != nil {
		ok(deliver.StepProfile, "%s, %s", how, keys.from)
		host, _, _ := net.SplitHostPort(s.p.Address)
		addrs, err := s.env.Dialer.Resolve(ctx, host)
		if err != nil {
			return nil, &stepError{deliver.StepResolve, err}
		}
		ok(deliver.StepResolve, "%s is %s", host, addrs)
	}

	// A pinned fingerprint does not tell the kind of key, and a server shows only one
	// key at a time: so each kind is asked for until the right key comes.
	for {
		conn, err := s.env.Dialer.DialContext(ctx, "tcp", s.p.Address)
		if err != nil {
			return nil, &stepError{deliver.StepConnect, err}
		}
		remote := conn.RemoteAddr()
		c, err := s.handshake(ctx, conn, auth, keys)
		if err != nil {
			conn.Close()
			if keys.nextKind(err) {
				continue
			}
			err = keys.best(err)
			var at *stepError
			if errors.As(err, &at) && at.step != deliver.StepConnect {
				ok(deliver.StepConnect, "%s answers", remote)
				if at.step == deliver.StepAuthenticate {
					ok(deliver.StepHostKey, "%s %s, as in %s", keys.seen.Type(), ssh.FingerprintSHA256(keys.seen), keys.from)
				}
			}
			return nil, err
		}
		ok(deliver.StepConnect, "%s answers as %s", remote, c.server)
		ok(deliver.StepHostKey, "%s %s, as in %s", keys.seen.Type(), ssh.FingerprintSHA256(keys.seen), keys.from)
		ok(deliver.StepAuthenticate, "as %s with %s", s.p.User, how)
		return c, nil
	}
}

// stepError says at which step of a check a connection failed.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// How much one read or write request of ours is for, in bytes. 32 KiB is what every server
// takes (draft-ietf-secsh-filexfer-02, section 3). OpenSSH's sftp-server.c has always taken
// messages of 256 KiB and read 64 KiB at once; since it has limits@openssh.com (8.5) it reads
// 255 KiB (SFTP_MAX_READ_LENGTH). One that is asked for more reads less, and what is read
// back would have holes.
const (
	anyRequest        = 32 << 10
	openSSHRequest    = 64 << 10
	newOpenSSHRequest = 255 << 10
)

// underWay is how many bytes of requests are sent ahead of their answers: the window
// of either side (channels.h CHAN_SES_WINDOW_DEFAULT; x/crypto/ssh channelWindowSize).
const underWay = 2 << 20

// handshake speaks SSH over conn, which is the session's when it succeeds.
func (s *Store) handshake(ctx context.Context, conn net.Conn, auth []ssh.AuthMethod, keys *hostKeys) (*session, error) {
	conn.SetDeadline(time.Now().Add(s.env.Timeouts.Progress))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	keys.begin()
	config := &ssh.ClientConfig{
		User: s.p.User, Auth: auth, ClientVersion: "SSH-2.0-capd",
		HostKeyCallback: keys.check, HostKeyAlgorithms: keys.algorithms,
	}
	stream := newStream(conn)
	transport, channels, requests, err := ssh.NewClientConn(stream, s.p.Address, config)
	if err != nil {
		return nil, s.handshakeError(ctx, err, keys)
	}
	client := ssh.NewClient(transport, channels, requests)
	files, err := sftp.NewClient(client, sftp.UseFstat(true))
	request := anyRequest
	if err == nil && bytes.HasPrefix(transport.ServerVersion(), []byte("SSH-2.0-OpenSSH_")) {
		request = openSSHRequest
		if _, ok := files.HasExtension(extLimits); ok {
			request = newOpenSSHRequest
		}
	}
	if err == nil {
		err = errors.Join(sftp.MaxPacketUnchecked(request)(files), sftp.MaxConcurrentRequestsPerFile(underWay/request)(files))
	}
	if err != nil {
		// A server that ends the channel and not the connection has no SFTP for us.
		_, _, aliveErr := client.SendRequest("keepalive@openssh.com", true, nil)
		client.Close()
		_ = client.Wait() // for its goroutines
		if aliveErr != nil || ctx.Err() != nil {
			return nil, &stepError{deliver.StepAuthenticate, deliver.Classify(ctx, err, "open SFTP on %s", s.p.Address)}
		}
		return nil, &stepError{deliver.StepAuthenticate, deliver.Fail(deliver.ReasonUnsupported, nil, "%s offers %s no SFTP", s.p.Address, s.p.User).
			WithHint("the server's sshd_config needs a line such as: Subsystem sftp internal-sftp; for an account without a shell (nologin): Match User %s, and below it ForceCommand internal-sftp", s.p.User)}
	}
	c := &session{conn: conn, stream: stream, ssh: client, wait: client.Wait, sftp: files, server: string(transport.ServerVersion())}
	c.home, err = files.RealPath(".")
	if err != nil {
		c.close()
		what := fmt.Sprintf("ask %s for the folder of %s", s.p.Address, s.p.User)
		if cut(err) {
			return nil, &stepError{deliver.StepAuthenticate, s.classifyCut(ctx, err, what)}
		}
		return nil, &stepError{deliver.StepAuthenticate, deliver.Classify(ctx, err, "%s", what)}
	}
	if !stop() {
		c.close()
		return nil, deliver.Classify(ctx, context.Cause(ctx), "connect to %s", s.p.Address)
	}
	conn.SetDeadline(time.Time{})
	return c, nil
}

// handshakeError says why an SSH connection did not come about.
func (s *Store) handshakeError(ctx context.Context, err error, keys *hostKeys) error {
	var negotiation *ssh.AlgorithmNegotiationError
	switch {
	case keys.err != nil:
		return &stepError{deliver.StepHostKey, keys.err}
	case errors.As(err, &negotiation) && strings.Contains(err.Error(), "host key"):
		return &stepError{deliver.StepHostKey, deliver.Fail(deliver.ReasonHostKey, nil, "%s has no host key of a kind that stands in %s (%s)",
			s.p.Address, keys.from, strings.Join(keys.algorithms, ", ")).WithHint("see which keys it has: ssh-keyscan %s", keyscanArgs(s.p.Address))}
	case errors.As(err, &negotiation):
		return &stepError{deliver.StepConnect, deliver.Fail(deliver.ReasonUnsupported, err, "%s", s.p.Address).
			WithHint("the server's SSH is too old or restricted to other algorithms")}
	case keys.seen != nil && strings.Contains(err.Error(), "unable to authenticate"):
		return &stepError{deliver.StepAuthenticate, deliver.Fail(deliver.ReasonCredentials, nil, "%s does not accept %s", s.p.Address, s.credentials()).
			WithHint("%s", s.credentialsHint())}
	case keys.seen != nil:
		return &stepError{deliver.StepAuthenticate, deliver.Classify(ctx, err, "log in to %s", s.p.Address)}
	}
	return &stepError{deliver.StepConnect, deliver.Classify(ctx, err, "%s does not answer as an SSH server", s.p.Address)}
}

func (s *Store) credentials() string {
	if s.p.PasswordFile != "" {
		return fmt.Sprintf("the password of %s", s.p.User)
	}
	return fmt.Sprintf("the key of %s", s.p.User)
}

func (s *Store) credentialsHint() string {
	if s.p.PasswordFile != "" {
		return fmt.Sprintf("the password is the first line of %s; the server's log says why it refuses", s.p.PasswordFile)
	}
	return fmt.Sprintf("add the key to authorized_keys of %s on the server; this prints it: ssh-keygen -y -f %s", s.p.User, s.p.PrivateKey)
}

// auth reads the key or the password. It tells in words which.
func (s *Store) auth() ([]ssh.AuthMethod, string, error) {
	if s.p.PasswordFile != "" {
		return s.passwordAuth()
	}
	data, err := deliver.ReadSecret("private_key", s.p.PrivateKey)
	if err != nil {
		return nil, "", err
	}
	signer, err := ssh.ParsePrivateKey(data)
	clear(data)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		return nil, "", deliver.Fail(deliver.ReasonSecretFile, nil, "private_key: %s is locked with a passphrase, and nobody is here to type it", s.p.PrivateKey).
			WithHint("make a key for capd alone: ssh-keygen -t ed25519 -N '' -f /etc/capd/KEY; or unlock this one: ssh-keygen -p -N '' -f %s", s.p.PrivateKey)
	}
	if err != nil {
		// The error's text may quote the file: it is left out.
		return nil, "", deliver.Fail(deliver.ReasonSecretFile, nil, "private_key: %s is not a private SSH key", s.p.PrivateKey).
			WithHint("make one: ssh-keygen -t ed25519 -N '' -f %s", s.p.PrivateKey)
	}
	how := fmt.Sprintf("key %s", ssh.FingerprintSHA256(signer.PublicKey()))
	// A certificate beside the key is used as ssh(1) does.
	path, err := deliver.Locate("private_key", s.p.PrivateKey)
	if err != nil {
		return nil, "", err
	}
	cert, err := os.ReadFile(path + "-cert.pub")
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, "", deliver.Fail(deliver.ReasonSecretFile, err, "private_key: certificate")
	default:
		public, _, _, _, err := ssh.ParseAuthorizedKey(cert)
		if err != nil {
			return nil, "", deliver.Fail(deliver.ReasonSecretFile, err, "private_key: %s-cert.pub is not a certificate", s.p.PrivateKey)
		}
		certificate, isCert := public.(*ssh.Certificate)
		if !isCert {
			return nil, "", deliver.Fail(deliver.ReasonSecretFile, nil, "private_key: %s-cert.pub is not a certificate", s.p.PrivateKey)
		}
		certified, err := ssh.NewCertSigner(certificate, signer)
		if err != nil {
			return nil, "", deliver.Fail(deliver.ReasonSecretFile, err, "private_key: %s-cert.pub", s.p.PrivateKey)
		}
		return []ssh.AuthMethod{ssh.PublicKeys(certified, signer)}, how + " and its certificate", nil
	}
	return []ssh.AuthMethod{ssh.PublicKeys(signer)}, how, nil
}

// passwordAuth answers both ways in which servers ask for a password.
func (s *Store) passwordAuth() ([]ssh.AuthMethod, string, error) {
	data, err := deliver.ReadSecret("password_file", s.p.PasswordFile)
	if err != nil {
		return nil, "", err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	password := string(bytes.TrimSuffix(line, []byte("\r")))
	if password == "" {
		return nil, "", deliver.Fail(deliver.ReasonSecretFile, nil, "password_file: the first line of %s is empty", s.p.PasswordFile)
	}
	answer := func(_, _ string, questions []string, echos []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i := range questions {
			if echos[i] {
				return nil, errors.New("the server asks for more than a password")
			}
			answers[i] = password
		}
		return answers, nil
	}
	return []ssh.AuthMethod{ssh.Password(password), ssh.KeyboardInteractive(answer)}, "the password of " + s.p.PasswordFile, nil
}
