package s3_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"capd/daemon/deliver"
	"capd/daemon/deliver/storetest"
	"capd/testbed"
)

func TestCredentialsThatAreWrong(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	secret := func(text string, mode os.FileMode) string {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, test := range map[string]struct {
		set    func(*deliver.Profile)
		step   string
		reason deliver.Reason
	}{
		"another secret":     {func(p *deliver.Profile) { p.SecretAccessKeyFile = secret("sesame-sesame", 0o600) }, deliver.StepAuthenticate, deliver.ReasonCredentials},
		"another key":        {func(p *deliver.Profile) { p.AccessKeyID = "nobody" }, deliver.StepAuthenticate, deliver.ReasonCredentials},
		"others may read it": {func(p *deliver.Profile) { p.SecretAccessKeyFile = secret("sesame-sesame", 0o644) }, deliver.StepProfile, deliver.ReasonSecretFile},
		"two words":          {func(p *deliver.Profile) { p.SecretAccessKeyFile = secret("sesame sesame", 0o600) }, deliver.StepProfile, deliver.ReasonSecretFile},
		"not there":          {func(p *deliver.Profile) { p.SecretAccessKeyFile = "/does/not/exist" }, deliver.StepProfile, deliver.ReasonSecretFile},
		"another bucket":     {func(p *deliver.Profile) { p.Bucket = "no-such-bucket" }, deliver.StepAuthenticate, deliver.ReasonMissing},
		"no environment":     {func(p *deliver.Profile) { p.AccessKeyID, p.SecretAccessKeyFile, p.Credentials = "", "", "env" }, deliver.StepProfile, deliver.ReasonCredentials},
		"no shared file":     {func(p *deliver.Profile) { p.AccessKeyID, p.SecretAccessKeyFile, p.Credentials = "", "", "file" }, deliver.StepProfile, deliver.ReasonSecretFile},
		"no web identity":    {func(p *deliver.Profile) { p.AccessKeyID, p.SecretAccessKeyFile, p.Credentials = "", "", "web-identity" }, deliver.StepProfile, deliver.ReasonCredentials},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/does/not/exist")
			p := profile(server)
			test.set(&p)
			last := checked(t, p, test.step)
			o, _ := storetest.Object("x/0001.pcapng", 10)
			_, err := open(t, p).Put(t.Context(), o)
			failure := storetest.Failed(t, err, test.reason)
			if !failure.Permanent || failure.Hint == "" || last.Hint == "" {
				t.Errorf("got %+v, step %+v", failure, last)
			}
			if text := fmt.Sprint(last, failure); strings.Contains(text, "sesame") || strings.Contains(text, server.Secret) {
				t.Errorf("a secret is in %q", text)
			}
		})
	}
}

func TestASecretThatWasExchangedCountsAtOnce(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	p := profile(server)
	p.SecretAccessKeyFile = filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(p.SecretAccessKeyFile, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	st := open(t, p)
	if st.Check(t.Context()).OK {
		t.Fatal("a wrong secret was accepted")
	}
	if err := os.WriteFile(p.SecretAccessKeyFile, []byte(server.Secret), 0o600); err != nil {
		t.Fatal(err)
	}
	if check := st.Check(t.Context()); !check.OK {
		t.Errorf("got %+v", check)
	}
}

func TestCredentialsFromElsewhere(t *testing.T) {
	server := testbed.NewS3(t, testbed.S3Options{})
	expires := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	issuer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost { // STS
			fmt.Fprintf(w, `<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>%s</AccessKeyId><SecretAccessKey>%s</SecretAccessKey><Expiration>%s</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>`,
				server.AccessKeyID, server.Secret, expires)
			return
		}
		fmt.Fprintf(w, `{"AccessKeyId": %q, "SecretAccessKey": %q, "Expiration": %q}`, server.AccessKeyID, server.Secret, expires)
	}))
	defer issuer.Close()
	dir := t.TempDir()
	for path, text := range map[string]string{
		"credentials": fmt.Sprintf("[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n", server.AccessKeyID, server.Secret),
		"token":       "a token",
	} {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for source, env := range map[string]map[string]string{
		deliver.CredentialsEnv:         {"AWS_ACCESS_KEY_ID": server.AccessKeyID, "AWS_SECRET_ACCESS_KEY": server.Secret},
		deliver.CredentialsFile:        {"AWS_SHARED_CREDENTIALS_FILE": filepath.Join(dir, "credentials")},
		deliver.CredentialsInstance:    {"AWS_CONTAINER_CREDENTIALS_FULL_URI": issuer.URL},
		deliver.CredentialsWebIdentity: {"AWS_WEB_IDENTITY_TOKEN_FILE": filepath.Join(dir, "token"), "AWS_ROLE_ARN": "arn:aws:iam::1:role/capd", "AWS_ENDPOINT_URL_STS": issuer.URL},
	} {
		t.Run(source, func(t *testing.T) {
			for key, value := range env {
				t.Setenv(key, value)
			}
			p := profile(server)
			p.AccessKeyID, p.SecretAccessKeyFile, p.Credentials = "", "", source
			checked(t, p, "")
		})
	}
	t.Run("a token that others may read", func(t *testing.T) {
		path := filepath.Join(dir, "token")
		t.Setenv("AWS_WEB_IDENTITY_TOKEN_FILE", path)
		t.Setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/capd")
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		p := profile(server)
		p.AccessKeyID, p.SecretAccessKeyFile, p.Credentials = "", "", deliver.CredentialsWebIdentity
		if last := checked(t, p, deliver.StepProfile); last.Hint != "chmod 600 "+path {
			t.Errorf("got %+v", last)
		}
	})
	t.Run("a shared file that others may read", func(t *testing.T) {
		path := filepath.Join(dir, "credentials")
		t.Setenv("AWS_SHARED_CREDENTIALS_FILE", path)
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		p := profile(server)
		p.AccessKeyID, p.SecretAccessKeyFile, p.Credentials = "", "", deliver.CredentialsFile
		if last := checked(t, p, deliver.StepProfile); last.Hint != "chmod 600 "+path {
			t.Errorf("got %+v", last)
		}
	})
}
