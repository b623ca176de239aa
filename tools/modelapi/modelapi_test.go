// Package modelapi drives capd with Cloudflare's own SDK, as a script does that was
// written for Cloudflare and is pointed at a box of one's own. It is a module of its own,
// so that capd does not depend on the SDK.
package modelapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cloudflare/cloudflare-go/v6"
	"github.com/cloudflare/cloudflare-go/v6/magic_transit"
	"github.com/cloudflare/cloudflare-go/v6/option"

	"capd/testbed"
)

func TestMain(m *testing.M) { os.Exit(testbed.Alone(m)) }

const (
	account  = "023e105f4ecef8ad9ca31a8372d0c353"
	talkPort = 47213
)

// sdk is a client as its documentation says, but for the two options that lead to the
// socket. It counts the requests that it makes.
func sdk(d *testbed.Daemon) (*cloudflare.Client, *atomic.Int64) {
	calls := new(atomic.Int64)
	client := &http.Client{Transport: counting{calls, &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", d.Socket)
		},
	}}}
	return cloudflare.NewClient(option.WithBaseURL("http://unix/client/v4/"), option.WithHTTPClient(client), option.WithAPIToken("none")), calls
}

type counting struct {
	calls *atomic.Int64
	next  http.RoundTripper
}

func (c counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.calls.Add(1)
	return c.next.RoundTrip(r)
}

// talk sends datagrams over loopback to talkPort.
func talk(t *testing.T, count int) {
	t.Helper()
	testbed.TalkToLoopback(t, talkPort, "model", count, 300)
}

// filter is of what talk sends.
func filter() magic_transit.PCAPFilterParam {
	return magic_transit.PCAPFilterParam{
		DestinationAddress: cloudflare.F("127.0.0.1"), DestinationPort: cloudflare.F(float64(talkPort)), Protocol: cloudflare.F(17.0),
	}
}

// await polls a capture by the SDK until it has a status.
func await(t *testing.T, client *cloudflare.Client, id, status string) *magic_transit.PCAPGetResponse {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		got, err := client.MagicTransit.PCAPs.Get(t.Context(), id, magic_transit.PCAPGetParams{AccountID: cloudflare.F(account)})
		if err != nil {
			t.Fatal(err)
		}
		if string(got.Status) == status {
			return got
		}
		if time.Now().After(deadline) {
			t.Fatalf("capture %s does not become %s: %s", id, status, got.JSON.RawJSON())
		}
	}
}

func TestSimple(t *testing.T) {
	testbed.NeedRoot(t)
	d := testbed.StartDaemon(t, "", "")
	client, _ := sdk(d)
	pcaps := client.MagicTransit.PCAPs
	made, err := pcaps.New(t.Context(), magic_transit.PCAPNewParams{AccountID: cloudflare.F(account), Body: magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestSimple{
		PacketLimit: cloudflare.F(10000.0), TimeLimit: cloudflare.F(300.0), FilterV1: cloudflare.F(filter()),
		System: cloudflare.F(magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestSimpleSystemMagicTransit),
		Type:   cloudflare.F(magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestSimpleTypeSimple),
	}})
	if err != nil {
		t.Fatal(err)
	}
	simple, ok := made.AsUnion().(magic_transit.PCAP)
	if !ok {
		t.Fatalf("the SDK takes it for a %T: %s", made.AsUnion(), made.JSON.RawJSON())
	}
	if len(simple.ID) != 32 || simple.Status != magic_transit.PCAPStatusRunning || simple.TimeLimit != 300 || simple.Type != magic_transit.PCAPTypeSimple ||
		simple.System != magic_transit.PCAPSystemMagicTransit || simple.FilterV1.DestinationPort != talkPort || simple.FilterV1.Protocol != 17 || simple.FilterV1.DestinationAddress != "127.0.0.1" {
		t.Errorf("the answer: %+v", simple)
	}
	if _, err := time.Parse(time.RFC3339, simple.Submitted); err != nil {
		t.Errorf("submitted: %v", err)
	}
	if extra := made.JSON.ExtraFields; len(extra) > 0 {
		t.Errorf("fields that the SDK does not know: %v", extra)
	}
	talk(t, 2000) // of which one in a hundred is kept
	if err := pcaps.Stop(t.Context(), simple.ID, magic_transit.PCAPStopParams{AccountID: cloudflare.F(account)}); err != nil {
		t.Fatal(err)
	}
	await(t, client, simple.ID, "success")

	resp, err := pcaps.Download.Get(t.Context(), simple.ID, magic_transit.PCAPDownloadGetParams{AccountID: cloudflare.F(account)})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "application/vnd.tcpdump.pcap" {
		t.Errorf("the download is of type %s", got)
	}
	file := filepath.Join(t.TempDir(), "simple.pcap")
	data, err := io.ReadAll(resp.Body)
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	record := d.Show(simple.ID)
	if lines := testbed.Tcpdump(t, file); uint64(len(lines)) != record.Packets.Captured || len(lines) == 0 || !strings.Contains(lines[0], fmt.Sprint(talkPort)) {
		t.Errorf("tcpdump reads %d packets, the record says %d", len(lines), record.Packets.Captured)
	}
}

// stores are the destinations of TestFull.
func stores(t *testing.T) (toml string, roots map[string]string) {
	sshd, s3 := testbed.NewSSHD(t), testbed.NewS3(t, testbed.S3Options{TLS: true})
	toml = fmt.Sprintf("[destination.soc]\ntype = \"sftp\"\naddress = %q\nuser = %q\nprivate_key = %q\nknown_hosts = %q\npath = \"in/{id}/{file}\"\n",
		sshd.Address, sshd.User, sshd.PrivateKey, sshd.KnownHosts) +
		fmt.Sprintf("[destination.evidence]\ntype = \"s3\"\nendpoint = %q\nregion = %q\nbucket = %q\npath_style = true\nca_file = %q\naccess_key_id = %q\nsecret_access_key_file = %q\npath = \"box/{id}/{file}\"\n",
			s3.Endpoint, s3.Region, s3.Bucket, s3.CAFile, s3.AccessKeyID, s3.SecretFile)
	return toml, map[string]string{
		"sftp://soc/in": filepath.Join(sshd.Root, "in"), "s3://" + s3.Bucket + "/box?region=" + s3.Region: filepath.Join(s3.Root, s3.Bucket, "box"),
	}
}

func TestFull(t *testing.T) {
	testbed.NeedRoot(t)
	toml, roots := stores(t)
	d := testbed.StartDaemon(t, "", toml)
	client, calls := sdk(d)
	pcaps := client.MagicTransit.PCAPs
	for conf, root := range roots {
		proveOwnership(t, client, conf, root)
		made, err := pcaps.New(t.Context(), magic_transit.PCAPNewParams{AccountID: cloudflare.F(account), Body: magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFull{
			ColoName: cloudflare.F("ORD"), DestinationConf: cloudflare.F(conf), TimeLimit: cloudflare.F(300.0), PacketLimit: cloudflare.F(10000.0), ByteLimit: cloudflare.F(500000.0), FilterV1: cloudflare.F(filter()),
			System: cloudflare.F(magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFullSystemMagicTransit),
			Type:   cloudflare.F(magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFullTypeFull),
		}})
		if err != nil {
			t.Fatalf("%s: %v", conf, err)
		}
		full, ok := made.AsUnion().(magic_transit.PCAPNewResponseMagicVisibilityPCAPsPCAPsResponseFull)
		if !ok {
			t.Fatalf("the SDK takes it for a %T: %s", made.AsUnion(), made.JSON.RawJSON())
		}
		if full.DestinationConf != conf || full.ByteLimit != 500000 || full.Type != "full" || full.Status != "running" || full.ColoName == "" || !full.StopRequested.IsZero() || len(made.JSON.ExtraFields) > 0 {
			t.Errorf("the answer: %s", made.JSON.RawJSON())
		}
		before := calls.Load()
		var failure *cloudflare.Error
		if _, err := pcaps.Download.Get(t.Context(), full.ID, magic_transit.PCAPDownloadGetParams{AccountID: cloudflare.F(account)}); !errors.As(err, &failure) || failure.StatusCode != http.StatusConflict {
			t.Errorf("download while it runs: %v", err)
		}
		if n := calls.Load() - before; n != 1 {
			t.Errorf("the SDK asks %d times where a conflict stays one", n)
		}
		talk(t, 40)
		if err := pcaps.Stop(t.Context(), full.ID, magic_transit.PCAPStopParams{AccountID: cloudflare.F(account)}); err != nil {
			t.Fatal(err)
		}
		got := await(t, client, full.ID, "success")
		done, ok := got.AsUnion().(magic_transit.PCAPGetResponseMagicVisibilityPCAPsPCAPsResponseFull)
		if !ok || done.PacketsCaptured != 40 || done.StopRequested.IsZero() || done.ErrorMessage != "" || len(got.JSON.ExtraFields) > 0 {
			t.Errorf("in the end: %T %s", got.AsUnion(), got.JSON.RawJSON())
		}
		found, err := filepath.Glob(filepath.Join(root, full.ID, "*.pcap"))
		if err != nil || len(found) != 1 {
			t.Fatalf("at %s: %v %v", conf, found, err)
		}
		if lines := testbed.Tcpdump(t, found[0]); len(lines) != 40 {
			t.Errorf("tcpdump reads %d packets", len(lines))
		}
	}

	page, err := pcaps.List(t.Context(), magic_transit.PCAPListParams{AccountID: cloudflare.F(account)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range page.Result {
		if _, ok := c.AsUnion().(magic_transit.PCAPListResponseMagicVisibilityPCAPsPCAPsResponseFull); !ok || len(c.ID) != 32 || roots[c.DestinationConf] == "" {
			t.Errorf("in the list: %T %s", c.AsUnion(), c.JSON.RawJSON())
		}
	}
	if len(page.Result) != len(roots) {
		t.Errorf("the list has %d captures: %s", len(page.Result), page.JSON.RawJSON())
	}
}

// proveOwnership has a challenge written, reads it where it lies, and sends it back.
func proveOwnership(t *testing.T, client *cloudflare.Client, conf, root string) {
	t.Helper()
	ownership := client.MagicTransit.PCAPs.Ownership
	made, err := ownership.New(t.Context(), magic_transit.PCAPOwnershipNewParams{AccountID: cloudflare.F(account), DestinationConf: cloudflare.F(conf)})
	if err != nil {
		t.Fatal(err)
	}
	if len(made.ID) != 32 || made.DestinationConf != conf || made.Status != magic_transit.OwnershipStatusPending || made.Validated != "" || len(made.JSON.ExtraFields) > 0 {
		t.Errorf("%s: %s", conf, made.JSON.RawJSON())
	}
	text, err := os.ReadFile(filepath.Join(root, made.Filename))
	if err != nil {
		t.Fatal(err)
	}
	validate := func(challenge string) (*magic_transit.Ownership, error) {
		return ownership.Validate(t.Context(), magic_transit.PCAPOwnershipValidateParams{AccountID: cloudflare.F(account), DestinationConf: cloudflare.F(conf), OwnershipChallenge: cloudflare.F(challenge)})
	}
	status := func() string {
		page, err := ownership.Get(t.Context(), magic_transit.PCAPOwnershipGetParams{AccountID: cloudflare.F(account)})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Result {
			if o.ID == made.ID {
				return string(o.Status)
			}
		}
		return "none"
	}
	var failure *cloudflare.Error
	if _, err := validate("guessed"); !errors.As(err, &failure) || failure.StatusCode != http.StatusUnprocessableEntity || len(failure.Errors) != 1 || failure.Errors[0].Code != 1422 || !strings.Contains(failure.Errors[0].Message, made.Filename) {
		t.Errorf("%s: a guess: %v", conf, err)
	}
	if got := status(); got != "failed" {
		t.Errorf("%s: after a guess it is %s", conf, got)
	}
	proved, err := validate(string(bytes.TrimSpace(text)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339, proved.Validated); err != nil || proved.Status != magic_transit.OwnershipStatusSuccess || proved.ID != made.ID {
		t.Errorf("%s: %s", conf, proved.JSON.RawJSON())
	}
	if got := status(); got != "success" {
		t.Errorf("%s: it is %s", conf, got)
	}
	remove := func() error {
		return ownership.Delete(t.Context(), made.ID, magic_transit.PCAPOwnershipDeleteParams{AccountID: cloudflare.F(account)})
	}
	if err := remove(); err != nil {
		t.Errorf("%s: %v", conf, err)
	}
	if _, err := os.Stat(filepath.Join(root, made.Filename)); !os.IsNotExist(err) {
		t.Errorf("%s: the challenge stays: %v", conf, err)
	}
	if got := status(); got != "none" {
		t.Errorf("%s: deleted, it is %s", conf, got)
	}
	if err := remove(); !errors.As(err, &failure) || failure.StatusCode != http.StatusNotFound {
		t.Errorf("%s: deleted twice: %v", conf, err)
	}
}

// TestRefusals holds that the SDK understands why something is refused, and asks once.
func TestRefusals(t *testing.T) {
	testbed.NeedRoot(t)
	d := testbed.StartDaemon(t, testbed.NewNS(t), "[limits]\nmax_captures = 1\n")
	client, calls := sdk(d)
	pcaps := client.MagicTransit.PCAPs
	start := func(change func(*magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFull)) error {
		body := magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFull{
			System: cloudflare.F(magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFullSystemMagicTransit),
			Type:   cloudflare.F(magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFullTypeFull),
		}
		change(&body)
		_, err := pcaps.New(t.Context(), magic_transit.PCAPNewParams{AccountID: cloudflare.F(account), Body: body})
		return err
	}
	type body = magic_transit.PCAPNewParamsBodyMagicVisibilityPCAPsPCAPsRequestFull
	if err := start(func(*body) {}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change  func(*body)
		status  int
		message string
	}{
		{func(*body) {}, http.StatusTooManyRequests, "1 captures run already"},
		{func(b *body) { b.TimeLimit = cloudflare.F(301.0) }, 422, "time_limit: 5m1s is out of range"},
		{func(b *body) { b.PacketLimit = cloudflare.F(20000.0) }, 422, "packet_limit: 20000 is out of range"},
		{func(b *body) { b.ByteLimit = cloudflare.F(2e9) }, 422, "byte_limit: 2000000000 is out of range"},
		{func(b *body) { b.DestinationConf = cloudflare.F("s3://elsewhere/x?region=y") }, 422, `destination_conf: "s3://elsewhere/x?region=y" fits no destination of this box`},
	} {
		before := calls.Load()
		err := start(c.change)
		var failure *cloudflare.Error
		if !errors.As(err, &failure) || failure.StatusCode != c.status || len(failure.Errors) != 1 || failure.Errors[0].Code != int64(1000+c.status) || !strings.Contains(failure.Errors[0].Message, c.message) {
			t.Errorf("got %v, want %d %s", err, c.status, c.message)
		}
		if n := calls.Load() - before; n != 1 {
			t.Errorf("%s: the SDK asks %d times", c.message, n)
		}
	}
}

// TestFields holds that the fields which capd answers with are the SDK's, all of them: an
// SDK that learns a new one is noticed here.
func TestFields(t *testing.T) {
	names := func(v any) string {
		var out []string
		for i := range reflect.TypeOf(v).NumField() {
			if tag := reflect.TypeOf(v).Field(i).Tag.Get("json"); tag != "" && tag != "-" {
				out = append(out, tag)
			}
		}
		return strings.Join(out, " ")
	}
	for _, c := range []struct{ got, want string }{
		{names(magic_transit.PCAP{}), "id filter_v1 offset_time status submitted system time_limit type"},
		{names(magic_transit.PCAPNewResponseMagicVisibilityPCAPsPCAPsResponseFull{}), "id byte_limit colo_name destination_conf error_message filter_v1 packets_captured status stop_requested submitted system time_limit type"},
		{names(magic_transit.PCAPFilter{}), "destination_address destination_port protocol source_address source_port"},
		{names(magic_transit.Ownership{}), "id destination_conf filename status submitted validated"},
	} {
		if c.got != c.want {
			t.Errorf("the SDK knows %s, capd was made for %s", c.got, c.want)
		}
	}
}
