package trust

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/command"
)

const (
	maxOutput = 32 << 10 // bytes of a verifier's output that are read, the rest is thrown away
	maxReason = 512      // bytes of it that an error has
)

// Verifiers are the programs in a directory.
type Verifiers struct {
	Dir     string
	Max     int           // of them; -1: any number
	Timeout time.Duration // of each
	Log     *slog.Logger  // gets what they say on standard error, at level debug
}

// Check asks all verifiers, one after another in the order of their names, until one does not accept. The error is
// ErrRefused unless ctx has ended.
func (v *Verifiers) Check(ctx context.Context, img Image) error {
	if img.Name == nil {
		return fmt.Errorf("%w: image verifiers: the image has no name to be asked about", ErrRefused)
	}
	entries, err := os.ReadDir(v.Dir)
	if err != nil {
		return fmt.Errorf("%w: image verifiers: %w", ErrRefused, err)
	}
	if v.Max >= 0 && len(entries) > v.Max {
		return fmt.Errorf("%w: image verifiers: %s has %d files, %d verifiers are allowed", ErrRefused, v.Dir, len(entries), v.Max)
	}
	for _, e := range entries {
		if err := v.ask(ctx, e.Name(), img); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("%w: image verifier %s: %w", ErrRefused, e.Name(), err)
		}
	}
	return nil
}

// ask runs one verifier; nil means that it accepts.
func (v *Verifiers) ask(ctx context.Context, name string, img Image) error {
	desc := img.Chain[0]
	input, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	timed, cancel := context.WithTimeoutCause(ctx, v.Timeout, fmt.Errorf("has not answered within %v", v.Timeout))
	defer cancel()
	out, said := command.Output{Max: maxOutput}, command.Output{Max: maxOutput}
	path := filepath.Join(v.Dir, name)
	verifier := command.Command{Path: path,
		Args:  []string{path, "-name", img.Name.String(), "-digest", desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor},
		Stdin: bytes.NewReader(input), Stdout: &out, Stderr: &said}
	err = verifier.Run(timed)
	v.log(name, &said)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%v: %q", exit.ProcessState, out.Excerpt(maxReason))
	}
	return err
}

func (v *Verifiers) log(name string, said *command.Output) {
	text := said.Excerpt(maxOutput)
	if v.Log == nil || text == "" {
		return
	}
	for line := range strings.SplitSeq(text, "\n") {
		v.Log.Debug("image verifier", "name", name, "says", line)
	}
}
