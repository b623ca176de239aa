package api

import (
	_ "embed" // for the description
	"net/http"
)

// openapi describes the calls under /v1 and the metrics: OpenAPI 3.1, written by hand. A
// test holds it against the routes and the wire objects, and tools/openapi real answers
// against it.
//
//go:embed openapi.json
var openapi []byte

func (h *Handler) openapi(c *call) error {
	if err := c.query(nil); err != nil {
		return err
	}
	send(c, http.StatusOK, "application/json", openapi)
	return nil
}
