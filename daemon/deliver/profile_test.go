package deliver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"capd/testbed"
)

func sftpProfile() Profile {
	return Profile{Name: "soc", Type: TypeSFTP, Address: "files.example.net", User: "capd", PrivateKey: "/k", KnownHosts: "/h"}
}

func s3Profile() Profile {
	return Profile{Name: "evidence", Type: TypeS3, Region: "eu-central-1", Bucket: "b-1", AccessKeyID: "id", SecretAccessKeyFile: "/s"}
}

func TestProfileDefaults(t *testing.T) {
	p := sftpProfile().WithDefaults()
	if p.Address != "files.example.net:22" || p.Verify != VerifyReadback || p.Probe != ProbeFull || p.Path != defaultTemplate || p.Concurrency != 2 {
		t.Errorf("got %+v", p)
	}
	p = s3Profile().WithDefaults()
	if p.Endpoint != "https://s3.eu-central-1.amazonaws.com" || p.Verify != VerifyChecksum || !p.VirtualHost() {
		t.Errorf("got %+v", p)
	}
	p.Endpoint = "https://minio.example.net:9000"
	if p.VirtualHost() {
		t.Error("virtual host at a server that is not Amazon's")
	}
	yes := true
	p.Endpoint, p.PathStyle = "https://s3.amazonaws.com", &yes
	if p.VirtualHost() {
		t.Error("path_style = true is not in force")
	}
	for _, p := range []Profile{sftpProfile(), s3Profile()} {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestValidateNamesKeyAndValue(t *testing.T) {
	sftp := func(change func(*Profile)) Profile { p := sftpProfile(); change(&p); return p }
	s3 := func(change func(*Profile)) Profile { p := s3Profile(); change(&p); return p }
	for _, test := range []struct {
		p          Profile
		key, value string
	}{
		{sftp(func(p *Profile) { p.Name = "" }), "name", ""},
		{sftp(func(p *Profile) { p.Type = "" }), "type", ""},
		{sftp(func(p *Profile) { p.Type = "ftp" }), "type", "ftp"},
		{sftp(func(p *Profile) { p.Path = "{nope}/{file}" }), "path", "{nope}/{file}"},
		{sftp(func(p *Profile) { p.Verify = "md5" }), "verify", "md5"},
		{sftp(func(p *Profile) { p.Probe = "some" }), "probe", "some"},
		{sftp(func(p *Profile) { p.Concurrency = 17 }), "concurrency", "17"},
		{sftp(func(p *Profile) { p.Bandwidth = -1 }), "bandwidth", "-1"},
		{sftp(func(p *Profile) { p.BindDevice = "a device with a name" }), "bind_device", "a device with a name"},
		{sftp(func(p *Profile) { p.Address = "" }), "address", ""},
		{sftp(func(p *Profile) { p.User = "" }), "user", ""},
		{sftp(func(p *Profile) { p.PrivateKey = "" }), "private_key or password_file", ""},
		{sftp(func(p *Profile) { p.PasswordFile = "/p" }), "private_key or password_file", ""},
		{sftp(func(p *Profile) { p.KnownHosts = "" }), "known_hosts or host_key", ""},
		{sftp(func(p *Profile) { p.KnownHosts, p.HostKey = "", "nonsense" }), "host_key", "nonsense"},
		{sftp(func(p *Profile) { p.PrivateKey = "id" }), "private_key", "id"},
		{s3(func(p *Profile) { p.Endpoint = "ftp://x" }), "endpoint", "ftp://x"},
		{s3(func(p *Profile) { p.Endpoint = "https://x/path" }), "endpoint", "https://x/path"},
		{s3(func(p *Profile) { p.Bucket = "" }), "bucket", ""},
		{s3(func(p *Profile) { p.Path = "/x/{file}" }), "path", "/x/{file}"},
		{s3(func(p *Profile) { p.AccessKeyID = "" }), "access_key_id and secret_access_key_file", ""},
		{s3(func(p *Profile) { p.Credentials = "env" }), "credentials", "env"},
		{s3(func(p *Profile) { p.Credentials = "guess" }), "credentials", "guess"},
		{s3(func(p *Profile) { p.SSE = "rot13" }), "sse", "rot13"},
		{s3(func(p *Profile) { p.SSE = "aws:kms:" }), "sse", "aws:kms:"},
		{s3(func(p *Profile) { p.ObjectLockDays = -1 }), "object_lock_days", "-1"},
		{s3(func(p *Profile) { p.CAFile = "ca.pem" }), "ca_file", "ca.pem"},
	} {
		err := test.p.Validate()
		var bad *ProfileError
		if !errors.As(err, &bad) || bad.Key != test.key || bad.Value != test.value {
			t.Errorf("%s = %q gave %v", test.key, test.value, err)
		}
	}
}

func TestReadSecretRefusesWhatOthersMayRead(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "secret")
	for mode, good := range map[os.FileMode]bool{0o600: true, 0o400: true, 0o640: false, 0o644: false, 0o604: false, 0o620: false} {
		if err := os.WriteFile(file, []byte("hunter2\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		data, err := ReadSecret("password_file", file)
		if good {
			if err != nil || string(data) != "hunter2\n" {
				t.Errorf("mode %o: %q, %v", mode, data, err)
			}
		} else {
			var failure *Error
			if !errors.As(err, &failure) || !failure.Permanent || failure.Hint != "chmod 600 "+file || strings.Contains(failure.Message, "hunter2") {
				t.Errorf("mode %o: %+v", mode, err)
			}
		}
		os.Remove(file)
	}
	for name, make := range map[string]func(){
		"missing": func() {},
		"empty":   func() { os.WriteFile(file, nil, 0o600) },
		"folder":  func() { os.Remove(file); os.Mkdir(file, 0o700) },
	} {
		make()
		if _, err := ReadSecret("private_key", file); err == nil || !strings.Contains(err.Error(), "private_key") {
			t.Errorf("%s: %v", name, err)
		}
		os.Remove(file)
	}
}

func TestReadSecretSaysWhoseTheFileHasToBe(t *testing.T) {
	if os.Geteuid() != 0 {
		testbed.Lacking(t, "root, to give a file away")
	}
	file := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	_, err := ReadSecret("private_key", file)
	var failure *Error
	if want := "chown root: " + file + " && chmod 600 " + file; !errors.As(err, &failure) || failure.Hint != want {
		t.Errorf("got %+v, want the hint %q", err, want)
	}
}

func TestSystemdCredentials(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	_, err := ReadSecret("private_key", "credential:soc-key")
	var failure *Error
	if !errors.As(err, &failure) || failure.Reason != ReasonSecretFile || !strings.Contains(failure.Hint, "LoadCredential=soc-key:") {
		t.Errorf("outside of a unit: %+v", err)
	}
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	file := filepath.Join(dir, "soc-key")
	if _, err := ReadSecret("private_key", "credential:soc-key"); !errors.As(err, &failure) || !strings.Contains(failure.Hint, "LoadCredential=soc-key:") {
		t.Errorf("not loaded: %+v", err)
	}
	if err := os.WriteFile(file, []byte("hunter2\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	// 0440 is how systemd's access list for the unit's user looks.
	for mode, good := range map[os.FileMode]bool{0o400: true, 0o440: true, 0o600: true, 0o444: false, 0o460: false, 0o404: false} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"credential:soc-key", file} {
			data, err := ReadSecret("private_key", name)
			if good != (err == nil) || good && string(data) != "hunter2\n" {
				t.Errorf("%s of mode %o: %q, %v", name, mode, data, err)
			}
		}
	}
	if data, err := ReadFile("ca_file", "credential:soc-key"); err != nil || len(data) == 0 {
		t.Errorf("a file that is no secret: %v", err)
	}
	for _, name := range []string{"credential:", "credential:.", "credential:..", "credential:a/b", "credential:../../etc/shadow", "key"} {
		p := Profile{Name: "soc", Type: TypeSFTP, Address: "h:22", User: "u", PrivateKey: name, HostKey: "SHA256:x"}
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "private_key") {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := Locate("private_key", name); err == nil && name != "key" {
			t.Errorf("%q was located", name)
		}
	}
	if err := (Profile{Name: "soc", Type: TypeSFTP, Address: "h:22", User: "u", PrivateKey: "credential:soc-key", HostKey: "SHA256:x"}).Validate(); err != nil {
		t.Error(err)
	}
}
