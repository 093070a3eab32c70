package main

import (
	"fmt"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells the service manager, if there is one, what became of us, in words of sd_notify(3).
func notify(state string) error {
	if _, err := daemon.SdNotify(false, state); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
