package sftp_test

import (
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	pkgsftp "github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"capd/daemon/deliver"
	"capd/daemon/deliver/storetest"
)

// sshd knows passwords only of real accounts, which a test cannot make: so passwords are
// tried against a server of our own, and nothing else is.

// passwordServer serves one folder to one password, asked for in one of two ways.
func passwordServer(t *testing.T, interactive bool) (address, hostKey, root string) {
	root = t.TempDir()
	address, hostKey = passwordServerOf(t, interactive, func(channel ssh.Channel) (subsystem, error) {
		return pkgsftp.NewServer(channel, pkgsftp.WithServerWorkingDirectory(root))
	})
	return address, hostKey, root
}

// subsystem is a server of pkg/sftp.
type subsystem interface {
	Serve() error
	Close() error
}

// passwordServerOf is passwordServer with another server behind the login.
func passwordServerOf(t *testing.T, interactive bool, behind func(ssh.Channel) (subsystem, error)) (address, hostKey string) {
	t.Helper()
	signer, err := ssh.ParsePrivateKey([]byte(newKey(t, "")))
	if err != nil {
		t.Fatal(err)
	}
	wrong := errors.New("no")
	config := &ssh.ServerConfig{}
	if interactive {
		config.KeyboardInteractiveCallback = func(c ssh.ConnMetadata, ask ssh.KeyboardInteractiveChallenge) (*ssh.Permissions, error) {
			answers, err := ask("", "", []string{"Password: "}, []bool{false})
			if err != nil || len(answers) != 1 || answers[0] != "open sesame" {
				return nil, wrong
			}
			return nil, nil
		}
	} else {
		config.PasswordCallback = func(c ssh.ConnMetadata, password []byte) (*ssh.Permissions, error) {
			if c.User() != "capd" || string(password) != "open sesame" {
				return nil, wrong
			}
			return nil, nil
		}
	}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { servePassword(conn, config, behind) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String(), strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

func servePassword(conn net.Conn, config *ssh.ServerConfig, behind func(ssh.Channel) (subsystem, error)) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				r.Reply(r.Type == "subsystem", nil)
			}
		}()
		server, err := behind(channel)
		if err != nil {
			return
		}
		server.Serve()
		server.Close()
	}
}

func TestPasswords(t *testing.T) {
	for name, interactive := range map[string]bool{"password": false, "keyboard-interactive": true} {
		t.Run(name, func(t *testing.T) {
			address, hostKey, _ := passwordServer(t, interactive)
			p := deliver.Profile{Name: "x", Type: deliver.TypeSFTP, Address: address, User: "capd", HostKey: hostKey,
				PasswordFile: write(t, "password", "open sesame\nanother line\n", 0o600)}
			checked(t, p, "")
			if err := os.WriteFile(p.PasswordFile, []byte("open barley\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			last := checked(t, p, deliver.StepAuthenticate)
			if text := last.Detail + last.Hint; strings.Contains(text, "barley") || !strings.Contains(text, p.PasswordFile) {
				t.Errorf("got %q", text)
			}
			if err := os.Chmod(p.PasswordFile, 0o644); err != nil {
				t.Fatal(err)
			}
			if last := checked(t, p, deliver.StepProfile); last.Hint != "chmod 600 "+p.PasswordFile {
				t.Errorf("got %+v", last)
			}
			p.PasswordFile = write(t, "password", "\nopen sesame\n", 0o600)
			checked(t, p, deliver.StepProfile)
		})
	}
}

// pkg/sftp's own server renames over what is there; capd must not let it.
func TestAServerWhoseRenameReplaces(t *testing.T) {
	address, hostKey, root := passwordServer(t, false)
	p := deliver.Profile{Name: "x", Type: deliver.TypeSFTP, Address: address, User: "capd", HostKey: hostKey,
		PasswordFile: write(t, "password", "open sesame\n", 0o600)}
	st := open(t, p)
	o, _ := storetest.Object("x/0001.pcapng", 1000)
	storetest.Put(t, st, o)
	other, _ := storetest.Object("x/0001.pcapng", 1001)
	_, err := st.Put(t.Context(), other)
	storetest.Failed(t, err, deliver.ReasonExists)
	info, err := os.Stat(root + "/x/0001.pcapng")
	if err != nil || info.Size() != 1000 {
		t.Errorf("it was replaced: %v, %v", info, err)
	}
}
