package daemon

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"capd/ctl/wire"
	"capd/daemon/api"
	"capd/daemon/deliver"
)

// ownerships are the proofs that whoever commands this box can read a destination: a file
// with a secret is written there through the profile's own way, and whoever reads it says
// the secret. There is at most one for each destination. They are kept in
// state_dir/ownerships.json, the secret as its hash.
type ownerships struct {
	path string

	mu   sync.Mutex
	list map[string]ownership // by destination
}

type ownership struct {
	api.Ownership
	Hash string `json:"hash"` // SHA-256 of the challenge, hexadecimal
}

func openOwnerships(stateDir string) (*ownerships, error) {
	o := &ownerships{path: filepath.Join(stateDir, "ownerships.json"), list: map[string]ownership{}}
	text, err := os.ReadFile(o.path)
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &o.list)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", o.path, err)
	}
	return o, nil
}

// change puts a changed copy of the list on disk and then in force.
func (o *ownerships) change(f func(map[string]ownership)) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := maps.Clone(o.list)
	f(list)
	text, err := json.MarshalIndent(list, "", " ")
	if err == nil {
		err = replaceFile(o.path, append(text, '\n'), 0o600, true)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", o.path, err)
	}
	o.list = list
	return nil
}

// Ownerships lists the proofs, the oldest first (api.Daemon).
func (d *Daemon) Ownerships() []api.Ownership {
	d.owned.mu.Lock()
	defer d.owned.mu.Unlock()
	out := make([]api.Ownership, 0, len(d.owned.list))
	for _, o := range d.owned.list {
		out = append(out, o.Ownership)
	}
	slices.SortFunc(out, func(a, b api.Ownership) int { return a.Submitted.Compare(b.Submitted.Time) })
	return out
}

// Challenge writes a file with a new secret to a destination (api.Daemon). An older one
// there is of no use any more and is deleted.
func (d *Daemon) Challenge(ctx context.Context, destination string) (api.Ownership, error) {
	if _, err := d.profile(destination); err != nil {
		return api.Ownership{}, err
	}
	id, secret := newID(), rand.Text()
	sum := sha256.Sum256([]byte(secret))
	o := ownership{Hash: hex.EncodeToString(sum[:]), Ownership: api.Ownership{
		ID: id, Destination: destination, Filename: "ownership-challenge-" + id + ".txt", Status: api.OwnershipPending, Submitted: *now()}}
	if err := d.client.Challenge(ctx, destination, o.Filename, []byte(secret+"\n")); err != nil {
		return api.Ownership{}, challengeProblem(destination, err)
	}
	var old ownership
	if err := d.owned.change(func(list map[string]ownership) { old, list[destination] = list[destination], o }); err != nil {
		return api.Ownership{}, err
	}
	if old.Filename != "" {
		d.removeChallenge(ctx, old)
	}
	return o.Ownership, nil
}

// Prove takes what somebody read in the challenge file (api.Daemon). A wrong answer is
// noted and spoils nothing: the right one still counts.
func (d *Daemon) Prove(destination, challenge string) (api.Ownership, error) {
	sum := sha256.Sum256([]byte(strings.TrimSpace(challenge)))
	given := hex.EncodeToString(sum[:])
	var result ownership
	var known, proved bool
	err := d.owned.change(func(list map[string]ownership) {
		if result, known = list[destination]; !known {
			return
		}
		proved = subtle.ConstantTimeCompare([]byte(given), []byte(result.Hash)) == 1
		switch {
		case proved:
			result.Status, result.Validated = api.OwnershipSuccess, now()
		case result.Status == api.OwnershipPending:
			result.Status = api.OwnershipFailed
		}
		list[destination] = result
	})
	switch {
	case err != nil:
		return api.Ownership{}, err
	case !known:
		return api.Ownership{}, &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNotFound, Message: fmt.Sprintf("no challenge was written to destination %q", destination), Hint: "ask for one first: POST .../pcaps/ownership"}
	case !proved:
		return api.Ownership{}, &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeInvalid, Field: "ownership_challenge",
			Message: "ownership_challenge: this is not what stands in the file", Hint: "send the contents of " + result.Filename}
	}
	return result.Ownership, nil
}

// Disown forgets a proof and deletes its file (api.Daemon).
func (d *Daemon) Disown(ctx context.Context, id string) error {
	var gone ownership
	err := d.owned.change(func(list map[string]ownership) {
		for destination, o := range list {
			if o.ID == id {
				gone = o
				delete(list, destination)
			}
		}
	})
	if err != nil {
		return err
	}
	if gone.ID == "" {
		return &wire.Error{Status: http.StatusNotFound, Code: wire.CodeNotFound, Message: fmt.Sprintf("there is no ownership with the id %q", id), Hint: "GET .../pcaps/ownership lists them"}
	}
	d.removeChallenge(ctx, gone)
	return nil
}

// removeChallenge deletes a challenge file that is of no use any more. One that stays
// behind does no harm and is told.
func (d *Daemon) removeChallenge(ctx context.Context, o ownership) {
	if err := d.client.RemoveChallenge(ctx, o.Destination, o.Filename); err != nil {
		d.log.Warn("a challenge file stays at its destination", "destination", o.Destination, "file", o.Filename, "err", err)
	}
}

func challengeProblem(destination string, err error) error {
	var de *deliver.Error
	if !errors.As(err, &de) {
		return fmt.Errorf("write a challenge to %s: %w", destination, err)
	}
	code := de.Code
	if code == "" {
		code = wire.CodeDestinationRefused
	}
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: code, Field: "destination_conf",
		Message: fmt.Sprintf("the challenge cannot be written to destination %s: %s", destination, de.Message), Hint: de.Hint}
}
