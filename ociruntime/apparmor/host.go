package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/criserver/criserver/command"
)

const (
	maxOutput = 4 << 10     // bytes of what the parser writes that are told
	loadBound = time.Minute // criserver does not serve before; a profile is compiled within a second
)

// ErrNoParser says that there is no apparmor_parser, so that nothing can be loaded.
var ErrNoParser = errors.New("apparmor_parser is not installed")

// Host is the AppArmor of a node.
type Host struct {
	profiles string   // file of the kernel's list
	current  string   // file of criserver's own label
	base     string   // directory of the parser's own files
	parsers  []string // where apparmor_parser may be
}

// Detect returns nil without an error if the kernel does not confine with AppArmor.
func Detect() (*Host, error) {
	return detect("/sys/module/apparmor/parameters/enabled", &Host{
		profiles: "/sys/kernel/security/apparmor/profiles", current: "/proc/self/attr/apparmor/current",
		base: "/etc/apparmor.d", parsers: []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"}})
}

func detect(enabled string, h *Host) (*Host, error) {
	answer, err := os.ReadFile(enabled)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.HasPrefix(answer, []byte("Y")) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask the kernel for AppArmor: %w", err)
	}
	if _, err := os.Stat(h.profiles); err != nil {
		return nil, fmt.Errorf("the kernel has AppArmor, but its list of profiles is not there (is securityfs mounted on /sys/kernel/security?): %w", err)
	}
	return h, nil
}

// Loaded says whether the kernel has a profile.
func (h *Host) Loaded(profile string) (bool, error) {
	list, err := os.ReadFile(h.profiles)
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	for line := range strings.Lines(string(list)) { // "name (mode)"; the name may have blanks
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == profile {
			return true, nil
		}
	}
	return false, nil
}

// LoadDefault gives the kernel the present text of DefaultProfile, unless the file loaded, which this function writes and
// which must not outlive a reboot, says that it has it. The error is ErrNoParser if the node cannot compile profiles.
func (h *Host) LoadDefault(ctx context.Context, loaded string) error {
	text, err := h.text()
	if err != nil {
		return err
	}
	last, err := os.ReadFile(loaded)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	there, err := h.Loaded(DefaultProfile)
	if err != nil || there && bytes.Equal(last, text) {
		return err
	}
	if err := h.load(ctx, text); err != nil {
		return fmt.Errorf("load AppArmor profile %s: %w", DefaultProfile, err)
	}
	return os.WriteFile(loaded, text, 0o600)
}

// Parser finds apparmor_parser. The error is ErrNoParser if there is none.
func (h *Host) Parser() (string, error) {
	for _, path := range h.parsers {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", ErrNoParser
}

// load compiles and loads a profile, in place of one with the same name.
func (h *Host) load(ctx context.Context, text []byte) error {
	parser, err := h.Parser()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, loadBound, fmt.Errorf("killed, it has not ended in %s", loadBound))
	defer cancel()
	output := command.Output{Max: maxOutput}
	c := command.Command{Path: parser, Args: []string{parser, "--base=" + h.base, "--replace", "--skip-cache", "--quiet"},
		Stdin: bytes.NewReader(text), Stdout: &output, Stderr: &output}
	if err := c.Run(ctx); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(parser), err, output.Excerpt(maxOutput))
	}
	return nil
}
