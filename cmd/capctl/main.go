// Capctl starts, watches and collects the captures of a capd.
package main

import (
	"os"

	"capd/ctl"
)

func main() {
	run := ctl.Main
	if ctl.IsExtcap(os.Args[0]) {
		run = ctl.Extcap
	}
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
