package deliver

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// capsetAllThreads is capset(2) on every thread of the process.
func capsetAllThreads(header *unix.CapUserHeader, sets *[2]unix.CapUserData) error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	runtime.KeepAlive(header)
	runtime.KeepAlive(sets)
	if errno != 0 {
		return errno
	}
	return nil
}
