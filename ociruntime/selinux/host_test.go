package selinux

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

var errUnknown = errors.New("invalid argument")

// knows is a policy with these types.
func knows(types ...string) func(string) error {
	return func(text string) error {
		if l, ok := parse(text); !ok || !slices.Contains(types, l.kind) {
			return errUnknown
		}
		return nil
	}
}

func TestLabels(t *testing.T) {
	h, err := NewHost("", "system_u:object_r:svirt_file_t:s0:c1,c2", knows("container_t", "svirt_file_t", "spc_t", "web_t"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		o             Options
		process, file string
	}{
		{Options{}, "system_u:system_r:container_t:s0", "system_u:object_r:svirt_file_t:s0"},
		{Options{Level: "s0:c1,c5"}, "system_u:system_r:container_t:s0:c1,c5", "system_u:object_r:svirt_file_t:s0:c1,c5"},
		{Options{"u", "r", "web_t", "s0-s0:c0.c9"}, "u:r:web_t:s0-s0:c0.c9", "u:object_r:svirt_file_t:s0-s0:c0.c9"},
	} {
		process, err := h.Process(row.o)
		if process != row.process || err != nil {
			t.Errorf("process %v: got %q, %v", row.o, process, err)
		}
		file, err := h.File(row.o)
		if file != row.file || err != nil {
			t.Errorf("file %v: got %q, %v", row.o, file, err)
		}
	}
	if _, err := h.Process(Options{Type: "nosuch_t"}); !errors.Is(err, errUnknown) || !strings.Contains(err.Error(), "nosuch_t") {
		t.Errorf("a type that the policy does not know: %v", err)
	}
	if got := h.Privileged(); got != "system_u:system_r:spc_t:s0" {
		t.Errorf("privileged: %q", got)
	}
	for text, want := range map[string]bool{"": false, h.Privileged(): false, "system_u:system_r:container_t:s0": true} {
		if Separated(text) != want {
			t.Errorf("%q is separated: %v", text, !want)
		}
	}
}

func TestHost(t *testing.T) {
	if _, err := NewHost("", "", knows("container_file_t")); !errors.Is(err, errUnknown) {
		t.Errorf("a policy without containers: %v", err)
	}
	if _, err := NewHost("system_u:system_r:container_t", "", knows("container_t")); err == nil {
		t.Error("took a policy without levels")
	}
	h, err := NewHost("", "", knows("container_t", "container_file_t"))
	if err != nil || h.Privileged() != "" {
		t.Errorf("a policy without %s: %v, %v", PrivilegedType, h, err)
	}
	if h, err := Detect(); h != nil || err != nil {
		t.Logf("this machine has SELinux: %v, %v", h, err)
	}
}
