package deliver

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confine takes from the calling process what the delivery needs no more: core dumps
// (keys and passwords stand in memory), being traced by others, new privileges through
// setuid programs, and every capability. A process of root's keeps CAP_DAC_READ_SEARCH,
// so that it can read key files that belong to capd's own user.
//
// It belongs at the start of the delivery process and nowhere else. What cannot be
// dropped is logged, and is no error where it was not there to begin with.
func Confine(log *slog.Logger) error {
	keep := -1
	if os.Geteuid() == 0 {
		keep = unix.CAP_DAC_READ_SEARCH
	}
	return confine(log, keep)
}

// Renounce is Confine for another process of capd's that reads nobody's files: no
// capability stays, whoever it runs as.
func Renounce(log *slog.Logger) error { return confine(log, -1) }

func confine(log *slog.Logger, keep int) error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		// A unit's SystemCallFilter= may forbid the call after LimitCORE=0 has done it.
		var now unix.Rlimit
		if getErr := unix.Getrlimit(unix.RLIMIT_CORE, &now); getErr != nil || now.Max != 0 {
			return fmt.Errorf("setrlimit RLIMIT_CORE: %w", err)
		}
	}
	if err := allThreads(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
		if !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("prctl PR_SET_NO_NEW_PRIVS: %w", err)
		}
		// Go cannot reach threads that C code has made; capd is built without it.
		log.Warn("privileges are kept: this binary is built with cgo")
		return setDumpable()
	}
	if err := dropCapabilities(keep); err != nil {
		return err
	}
	return setDumpable()
}

// setDumpable comes last: dropping capabilities may change it.
func setDumpable() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

// dropCapabilities empties the ambient, bounding, effective, permitted and inheritable
// sets, but for one capability.
func dropCapabilities(keep int) error {
	if err := allThreads(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL); err != nil {
		return fmt.Errorf("prctl PR_CAP_AMBIENT_CLEAR_ALL: %w", err)
	}
	// EPERM: without CAP_SETPCAP the bounding set stays; with no_new_privs it is of no
	// use. EINVAL: past the kernel's last capability.
	for c := 0; c < 64; c++ {
		err := allThreads(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c))
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
			break
		}
		if err != nil {
			return fmt.Errorf("prctl PR_CAPBSET_DROP: %w", err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, sets [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	if keep >= 0 {
		bit := uint32(1) << (keep % 32)
		sets[keep/32].Permitted = have[keep/32].Permitted & bit
		sets[keep/32].Effective = have[keep/32].Permitted & bit
	}
	if err := capsetAllThreads(&header, &sets); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// allThreads makes a system call on every thread of the process: these settings belong
// to threads (credentials(7)).
func allThreads(trap, a1, a2 uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
