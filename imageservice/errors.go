package imageservice

import (
	"errors"
	"fmt"

	"github.com/criserver/criserver/imageservice/remote"
	"github.com/criserver/criserver/imageservice/trust"
)

// What callers act on. Any other error of Pull is the end of its ctx or the node's own trouble.
var (
	ErrNotFound         = errors.New("image not found")          // not at the registry, or not present
	ErrUnauthorized     = errors.New("image pull access denied") // credentials missing or refused
	ErrInvalidReference = errors.New("invalid image reference")  // cannot name an image
	ErrInvalidImage     = errors.New("invalid image")            // contradicts itself, its digests or a limit
)

// ErrRegistryUnavailable says that no endpoint of the registry gave a useful answer. The text of such an error begins with
// this word, which the kubelet looks for.
var ErrRegistryUnavailable = errors.New("RegistryUnavailable")

// ErrRefused says that the verification that is configured does not let the image in. The text of such an error begins with
// this word, which the kubelet looks for.
var ErrRefused = errors.New("SignatureValidationFailed")

// classify gives the error of a pull the sentinel that callers know.
func classify(ref string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, trust.ErrRefused) {
		return fmt.Errorf("%w: pull image %s: %w", ErrRefused, ref, err)
	}
	for _, kind := range []struct{ remote, ours error }{
		{remote.ErrUnauthorized, ErrUnauthorized},
		{remote.ErrNotFound, ErrNotFound},
		{remote.ErrInvalid, ErrInvalidImage},
	} {
		if errors.Is(err, kind.remote) && !errors.Is(err, kind.ours) {
			return fmt.Errorf("pull image %s: %w: %w", ref, kind.ours, err)
		}
	}
	if errors.Is(err, remote.ErrUnavailable) {
		return fmt.Errorf("%w: pull image %s: %w", ErrRegistryUnavailable, ref, err)
	}
	return fmt.Errorf("pull image %s: %w", ref, err)
}
