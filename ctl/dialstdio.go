package ctl

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"capd/ctl/client"
	"capd/ctl/remote"
)

// dialStdioCommand is capctl dial-stdio, the far side of capctl -H: it joins stdin and
// stdout to capd's socket. On the socket it is whoever logged in, so that capd judges and
// audits them.
func (a *app) dialStdioCommand() *cobra.Command {
	var greet bool
	cmd := &cobra.Command{
		Use:    "dial-stdio [flags]",
		Hidden: true,
		Short:  "join stdin and stdout to capd's socket",
		Long: `dial-stdio passes bytes between stdin and stdout and capd's socket. capctl -H runs it on
the other box, through ssh.`,
		Example:           `  capctl dial-stdio`,
		Args:              exactly(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.dialStdio(cmd.Context(), greet)
		},
	}
	cmd.Flags().BoolVar(&greet, "greet", false, "say first that it is connected, and by which SSH connection")
	return cmd
}

func (a *app) dialStdio(ctx context.Context, greet bool) error {
	conn, err := a.client().Raw(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if greet {
		if err := remote.Greet(a.stdout, a.getenv("SSH_CONNECTION")); err != nil {
			return err
		}
	}
	context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		// Left behind where stdin never ends: the process ends with its other half.
		_, _ = io.Copy(conn, a.stdin)
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	_, err = io.Copy(a.stdout, conn)
	if err != nil && (errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return nil
	}
	if err != nil {
		return &client.UnreachableError{Err: err, What: err.Error()}
	}
	return nil
}
