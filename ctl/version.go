package ctl

import (
	"context"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"capd/ctl/wire"
)

// versionCommand is capctl version.
func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		GroupID: groupOther,
		Short:   "the versions of capctl and of the capd that answers",
		Long: `version prints the version of capctl and, where one answers, that of capd with its host
and kernel. That none answers is said on stderr and is no error.`,
		Example:           `  capctl version`,
		Args:              exactly(),
		ValidArgsFunction: noFiles,
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.version(cmd.Context()) },
	}
}

func (a *app) version(ctx context.Context) error {
	ctx, cancel := a.soon(ctx)
	defer cancel()
	status, err := a.client().Status(ctx)
	if a.json {
		answer := struct {
			Capctl string       `json:"capctl"`
			Capd   *wire.Status `json:"capd"` // null where none answers
		}{Capctl: wire.Version}
		if err == nil {
			answer.Capd = &status
		}
		return a.printJSON(answer)
	}
	if _, werr := fmt.Fprintf(a.stdout, "capctl %s (%s, %s/%s)\n", wire.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH); werr != nil {
		return werr
	}
	if err != nil {
		_, message, _ := verdict(err)
		a.note("capd: %s", message)
		return nil
	}
	_, err = fmt.Fprintf(a.stdout, "capd   %s on %s, %s, up since %s\n", clean(status.Version), clean(status.Host), clean(status.Kernel), a.moment(status.Started.Time))
	return err
}
