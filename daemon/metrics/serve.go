package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

// Bounds of the exporter.
const (
	scrapeTimeout = 10 * time.Second
	maxPage       = 16 << 20 // bytes
)

// Serve answers scrapes of /metrics at the listener, each with what the same path gives
// at the connection that dial makes, until ctx ends or dial fails for good
// (ErrGone). Nothing else passes: a scraper reaches no other call. It owns the listener.
func Serve(ctx context.Context, listener net.Listener, dial func(context.Context) (net.Conn, error), logger *slog.Logger) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	upstream := &http.Transport{
		// One at a time is enough for a scrape every few seconds, and all that capd grants.
		MaxConnsPerHost: 1, DisableCompression: true,
		DialContext: func(c context.Context, _, _ string) (net.Conn, error) {
			conn, err := dial(c)
			if errors.Is(err, ErrGone) {
				cancel(err)
			}
			return conn, err
		},
	}
	defer upstream.CloseIdleConnections()
	client := &http.Client{Transport: upstream, Timeout: scrapeTimeout}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		// Not the scraper's context: one that gives up must not cost the connection.
		page, err := fetch(ctx, client)
		if err != nil {
			logger.Warn("capd gives no metrics", "err", err)
			http.Error(w, "capd gives no metrics: "+err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", ContentType)
		w.Header().Set("Cache-Control", "no-store")
		_, _ = w.Write(page) // a scraper that went away is no concern of ours
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 3 * scrapeTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 8 << 10,
		ErrorLog: slog.NewLogLogger(logger.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(listener)
	if cause := context.Cause(ctx); errors.Is(cause, ErrGone) {
		return cause
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}

// ErrGone is in the error of a dial that will never succeed again.
var ErrGone = errors.New("capd has closed the connection")

// fetch reads capd's page.
func fetch(ctx context.Context, client *http.Client) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://capd/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %.300s", resp.Status, page)
	}
	return page, nil
}
