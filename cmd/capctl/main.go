// Capctl starts, watches and collects the captures of a capd.
package main

import (
	"os"

	"capd/ctl"
)

func main() { os.Exit(ctl.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
