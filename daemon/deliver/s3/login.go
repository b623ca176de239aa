package s3

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"capd/daemon/deliver"
)

// idleTime is how long a connection without work is kept.
const idleTime = 20 * time.Second

// newTransport speaks HTTP/1.1 over the destination's Dialer. also trusts the system's
// authorities beside ca_file.
func newTransport(p deliver.Profile, env deliver.Env, also bool) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if p.CAFile != "" {
		pem, err := deliver.ReadFile("ca_file", p.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if also {
			if system, err := x509.SystemCertPool(); err == nil {
				config.RootCAs = system
			}
		}
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, deliver.Fail(deliver.ReasonSecretFile, nil, "ca_file: %s holds no PEM certificate", p.CAFile)
		}
	}
	return &http.Transport{
		DialContext:         env.Dialer.DialContext,
		TLSClientConfig:     config,
		TLSHandshakeTimeout: env.Timeouts.Progress,
		MaxIdleConnsPerHost: 16,
		IdleConnTimeout:     idleTime,
		DisableCompression:  true,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
	}, nil
}

// mostAnswer is how much of an answer that is no object is read, in bytes: a server can go
// on for ever, and minio-go reads to the end.
const mostAnswer = 1 << 20

// briefly is a transport whose answers end at mostAnswer, but for objects.
type briefly struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b briefly) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err != nil || r.Method == http.MethodGet && answer.StatusCode < 300 {
		return answer, err // whoever reads an object knows its size
	}
	answer.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(answer.Body, mostAnswer), answer.Body}
	return answer, nil
}

// login gives clients that hold the credentials in force.
type login struct {
	store *Store

	mu     sync.Mutex
	client *minio.Core
	creds  *credentials.Credentials
	secret [32]byte        // hash of the static secret that client was made with
	other  *http.Transport // to where temporary credentials come from
}

func (l *login) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.other != nil {
		l.other.CloseIdleConnections()
	}
}

// core gives a client. A secret that was changed on disk counts from the next call on.
func (l *login) core(ctx context.Context) (*minio.Core, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.store.p
	if p.Credentials == "" {
		if err := l.static(p); err != nil {
			return nil, err
		}
	} else if err := l.temporary(ctx, p); err != nil {
		return nil, err
	}
	if l.client != nil {
		return l.client, nil
	}
	u, err := url.Parse(p.Endpoint)
	if err != nil {
		return nil, deliver.Fail(deliver.ReasonProfile, err, "endpoint")
	}
	lookup := minio.BucketLookupPath
	if p.VirtualHost() {
		lookup = minio.BucketLookupDNS
	}
	client, err := minio.NewCore(u.Host, &minio.Options{
		Creds: l.creds, Secure: u.Scheme == "https", Transport: briefly{l.store.transport},
		Region: p.Region, BucketLookup: lookup, MaxRetries: 1, // the queue repeats, and knows when not to
	})
	if err != nil {
		return nil, deliver.Fail(deliver.ReasonProfile, err, "endpoint = %q", p.Endpoint)
	}
	client.SetAppInfo("capd", "1")
	l.client = client
	return client, nil
}

// static reads the secret of access_key_id.
func (l *login) static(p deliver.Profile) error {
	data, err := deliver.ReadSecret("secret_access_key_file", p.SecretAccessKeyFile)
	if err != nil {
		return err
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" || strings.ContainsAny(secret, " \n\t") {
		return deliver.Fail(deliver.ReasonSecretFile, nil, "secret_access_key_file: %s does not hold one secret on one line", p.SecretAccessKeyFile).
			WithHint("write the secret into it and nothing else; the id belongs into access_key_id")
	}
	if sum := sha256.Sum256([]byte(secret)); l.creds == nil || sum != l.secret {
		l.creds, l.secret, l.client = credentials.NewStaticV4(p.AccessKeyID, secret, ""), sum, nil
	}
	return nil
}

// temporary prepares the other sources, and sees to it that they give something: a
// library that finds no credentials would send requests without any.
func (l *login) temporary(ctx context.Context, p deliver.Profile) error {
	if p.Credentials == deliver.CredentialsFile {
		if _, err := deliver.ReadSecret("credentials", sharedFile()); err != nil {
			return err
		}
	}
	if token := os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE"); p.Credentials == deliver.CredentialsWebIdentity && token != "" {
		if _, err := deliver.ReadSecret("AWS_WEB_IDENTITY_TOKEN_FILE", token); err != nil {
			return err
		}
	}
	if l.creds == nil {
		if err := l.open(p); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.store.env.Timeouts.Progress)
	defer cancel()
	value, err := l.creds.GetWithContext(&credentials.CredContext{Client: l.http(), Context: ctx})
	if err != nil {
		failure := deliver.Classify(ctx, err, "get credentials (%s)", p.Credentials)
		if failure.Reason == deliver.ReasonUnknown {
			failure = deliver.Fail(deliver.ReasonCredentials, err, "get credentials (%s)", p.Credentials).WithHint("%s", whence(p.Credentials))
		}
		return failure
	}
	if value.AccessKeyID == "" || value.SecretAccessKey == "" {
		return deliver.Fail(deliver.ReasonCredentials, nil, "there are no credentials (%s)", p.Credentials).WithHint("%s", whence(p.Credentials))
	}
	return nil
}

// whence says where a source of credentials looks.
func whence(source string) string {
	switch source {
	case deliver.CredentialsEnv:
		return "the delivery process's environment needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (systemctl edit capd-deliver, EnvironmentFile=)"
	case deliver.CredentialsFile:
		return "they stand in " + sharedFile() + " (or $AWS_SHARED_CREDENTIALS_FILE), under [default] or $AWS_PROFILE"
	case deliver.CredentialsWebIdentity:
		return "the delivery process's environment needs AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN (systemctl edit capd-deliver)"
	}
	return "the instance needs a role, and its metadata service (169.254.169.254) must be reachable"
}

// sharedFile is where the AWS tools keep keys.
func sharedFile() string {
	if path := os.Getenv("AWS_SHARED_CREDENTIALS_FILE"); path != "" {
		return path
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/root"
	}
	return filepath.Join(home, ".aws", "credentials")
}

// open makes the source.
func (l *login) open(p deliver.Profile) error {
	switch p.Credentials {
	case deliver.CredentialsEnv:
		l.creds = credentials.NewEnvAWS()
		return nil
	case deliver.CredentialsFile:
		l.creds = credentials.NewFileAWSCredentials(sharedFile(), "")
		return nil
	}
	identity := os.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE") != "" && os.Getenv("AWS_ROLE_ARN") != ""
	if p.Credentials == deliver.CredentialsWebIdentity && !identity {
		return deliver.Fail(deliver.ReasonCredentials, nil, "there are no credentials (%s)", p.Credentials).WithHint("%s", whence(p.Credentials))
	}
	var err error
	if l.other == nil {
		if l.other, err = newTransport(p, l.store.env, true); err != nil {
			return err
		}
	}
	iam := &credentials.IAM{Client: l.http(), Region: p.Region}
	if p.Credentials == deliver.CredentialsWebIdentity {
		iam.Endpoint = os.Getenv("AWS_ENDPOINT_URL_STS")
	}
	l.creds = credentials.New(iam)
	return nil
}

// http is the client to where temporary credentials come from.
func (l *login) http() *http.Client {
	if l.other == nil {
		return &http.Client{Transport: l.store.transport}
	}
	return &http.Client{Transport: l.other}
}
