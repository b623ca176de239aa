// Command inject makes the kernel receive UDP frames on a device, up to some 2 million a
// second from one CPU, without hardware: see testbed.Inject.
package main

import (
	"flag"
	"fmt"
	"os"

	"capd/testbed"
)

func main() {
	var o testbed.InjectOptions
	var port uint
	flag.StringVar(&o.Interface, "i", "", "the device that the frames seem to arrive on")
	flag.IntVar(&o.Count, "n", 2_000_000, "how many frames")
	flag.IntVar(&o.Length, "l", 60, "bytes of a frame, Ethernet header included")
	flag.Float64Var(&o.Rate, "r", 0, "frames per second (0: as fast as the CPU goes)")
	flag.IntVar(&o.Flows, "flows", 1, "different source ports")
	flag.UintVar(&port, "port", 9, "UDP destination port")
	flag.IntVar(&o.CPU, "cpu", -1, "run on this CPU only")
	ns := flag.String("ns", "", "the network namespace of the device (default: the present one)")
	flag.Parse()
	o.Pin, o.Port = o.CPU >= 0, uint16(port)
	if o.Interface == "" || flag.NArg() > 0 || port > 65535 {
		flag.Usage()
		os.Exit(2)
	}
	sent, err := testbed.Inject(*ns, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "inject:", err)
		os.Exit(1)
	}
	fmt.Printf("sent %d in %.3f s, %.0f frames/s\n", sent.Frames, sent.Elapsed.Seconds(), sent.Rate())
}
