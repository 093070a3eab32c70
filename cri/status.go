package cri

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/criserver/criserver/cri/streaming"
	"github.com/criserver/criserver/imageservice"
	"github.com/criserver/criserver/sandbox"
	"github.com/criserver/criserver/sandbox/events"
	"github.com/criserver/criserver/stage"
)

var (
	// errStarting refuses what cannot be served yet.
	errStarting = errors.New("criserver is still starting")
	// errStopping ends what would go on for ever.
	errStopping = errors.New("criserver is stopping")
)

// statusCodes is where errors meet gRPC codes: errors.Is, the first hit wins. What is not here is Unknown, the code that
// the kubelet expects of errors that it knows by the begin of their text (RegistryUnavailable, RROUnsupported, ...).
var statusCodes = []struct {
	err  error
	code codes.Code
}{
	{crierrors.ErrImageVolumeMountFailed, codes.Unknown}, // also if there is no such image: it is not what the request is about
	{errInvalid, codes.InvalidArgument},
	{errStarting, codes.Unavailable},
	{errStopping, codes.Unavailable},
	{sandbox.ErrInvalid, codes.InvalidArgument},
	{sandbox.ErrNotFound, codes.NotFound},
	{sandbox.ErrState, codes.FailedPrecondition},
	{events.ErrSlow, codes.ResourceExhausted},
	{sandbox.ErrExecTimeout, codes.DeadlineExceeded},
	{streaming.ErrTooMany, codes.ResourceExhausted},
	{imageservice.ErrRegistryUnavailable, codes.Unknown}, // the kubelet looks for the prefix of this code's text
	{imageservice.ErrRefused, codes.Unknown},             // likewise
	{imageservice.ErrInvalidReference, codes.InvalidArgument},
	{imageservice.ErrNotFound, codes.NotFound},
	{imageservice.ErrUnauthorized, codes.Unknown},
	{stage.ErrSuperseded, codes.Aborted},
	{stage.ErrClosed, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
}

// firstWords are errors that clients know by the begin of the text, where otherwise the stage stands.
var firstWords = []error{imageservice.ErrRegistryUnavailable, imageservice.ErrRefused, crierrors.ErrRROUnsupported, crierrors.ErrImageVolumeMountFailed}

// leading moves the word of such an error to the front of the text.
func leading(err error, text string) string {
	for _, first := range firstWords {
		word := first.Error() + ": "
		if errors.Is(err, first) && !strings.HasPrefix(text, word) {
			return word + strings.Replace(text, word, "", 1)
		}
	}
	return text
}

// longestText is how much of an error is told, in bytes. It may quote a request, and travels in a header.
const longestText = 16 << 10

// toStatus gives err its code. The text stays, without secrets.
func toStatus(err error, secrets []string) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err // a code that a handler chose: Unimplemented of the embedded server
	}
	text := clip(redact(leading(err, err.Error()), secrets), longestText)
	var p *stage.PanicError
	if errors.As(err, &p) {
		return status.Error(codes.Internal, text)
	}
	for _, row := range statusCodes {
		if errors.Is(err, row.err) {
			return status.Error(row.code, text)
		}
	}
	return status.Error(codes.Unknown, text)
}
