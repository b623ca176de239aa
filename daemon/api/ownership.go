package api

import (
	"net/http"

	"capd/ctl/wire"
)

// Ownership is a proof, or the beginning of one, that whoever commands this box can read a
// destination.
type Ownership struct {
	ID          string     `json:"id"` // 32 hexadecimal digits
	Destination string     `json:"destination"`
	Filename    string     `json:"filename"` // of the challenge, in the destination's folder
	Status      string     `json:"status"`
	Submitted   wire.Time  `json:"submitted"`
	Validated   *wire.Time `json:"validated,omitempty"`
}

// Statuses of an Ownership.
const (
	OwnershipPending = "pending"
	OwnershipSuccess = "success"
	OwnershipFailed  = "failed" // a wrong answer; the right one still counts
)

// modelOwnership is an Ownership as the model API shows it.
type modelOwnership struct {
	ID              string    `json:"id"`
	DestinationConf string    `json:"destination_conf"`
	Filename        string    `json:"filename"`
	Status          string    `json:"status"`
	Submitted       wire.Time `json:"submitted"`
	Validated       string    `json:"validated"` // "" until it is
}

func (h *Handler) modelOwnership(o Ownership) modelOwnership {
	m := modelOwnership{ID: o.ID, DestinationConf: h.modelURI(o.Destination), Filename: o.Filename, Status: o.Status, Submitted: o.Submitted}
	if o.Validated != nil {
		m.Validated = o.Validated.UTC().Format(wire.TimeFormat)
	}
	return m
}

// ownershipRoutes are the model API's calls about buckets.
func (h *Handler) ownershipRoutes(at func(...string) []string) []route {
	return []route{
		{method: http.MethodPost, pattern: at("ownership"), needs: rightControl, does: "write challenges to destinations", audit: "challenge", serve: h.modelChallenge},
		{method: http.MethodGet, pattern: at("ownership"), needs: rightView, does: "list destinations", serve: h.modelOwnerships},
		{method: http.MethodPost, pattern: at("ownership", "validate"), needs: rightControl, does: "validate destinations", audit: "validate", serve: h.modelValidate},
		{method: http.MethodDelete, pattern: at("ownership", "{ownership}"), needs: rightControl, does: "forget challenges", audit: "disown", serve: h.modelDisown},
	}
}

func (h *Handler) modelChallenge(c *call) error {
	var m struct {
		DestinationConf string `json:"destination_conf"`
	}
	if err := c.readBody(&m); err != nil {
		return err
	}
	destination, err := h.ownable(c, m.DestinationConf)
	if err != nil {
		return err
	}
	o, err := h.daemon.Challenge(c.r.Context(), destination)
	if err != nil {
		return err
	}
	c.account.file = o.Filename
	answerModel(c, h.modelOwnership(o))
	return nil
}

// ownable gives the destination that a request about ownership means.
func (h *Handler) ownable(c *call, conf string) (string, error) {
	if err := c.query(nil); err != nil {
		return "", err
	}
	if conf == "" {
		return "", invalid("destination_conf", "destination_conf is missing", "write s3://BUCKET/FOLDER or sftp://PROFILE")
	}
	destination, e := modelDestination(conf, h.daemon.Destinations())
	if e != nil {
		return "", e
	}
	c.account.destination = destination
	return destination, nil
}

func (h *Handler) modelOwnerships(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	list := []modelOwnership{}
	for _, o := range h.daemon.Ownerships() {
		list = append(list, h.modelOwnership(o))
	}
	answerModel(c, list)
	return nil
}

func (h *Handler) modelValidate(c *call) error {
	var m struct {
		DestinationConf    string `json:"destination_conf"`
		OwnershipChallenge string `json:"ownership_challenge"`
	}
	if err := c.readBody(&m); err != nil {
		return err
	}
	destination, err := h.ownable(c, m.DestinationConf)
	if err != nil {
		return err
	}
	if m.OwnershipChallenge == "" {
		return invalid("ownership_challenge", "ownership_challenge is missing", "send the contents of the challenge file")
	}
	o, err := h.daemon.Prove(destination, m.OwnershipChallenge)
	if err != nil {
		return err
	}
	c.account.file = o.Filename
	answerModel(c, h.modelOwnership(o))
	return nil
}

func (h *Handler) modelDisown(c *call) error {
	if err := c.plain(); err != nil {
		return err
	}
	if err := h.daemon.Disown(c.r.Context(), c.vars[1]); err != nil {
		return err
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}
