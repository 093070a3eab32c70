package cri

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	{imageservice.ErrInvalidReference, codes.InvalidArgument},
	{imageservice.ErrNotFound, codes.NotFound},
	{imageservice.ErrUnauthorized, codes.Unknown},
	{stage.ErrSuperseded, codes.Aborted},
	{stage.ErrClosed, codes.Unavailable},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
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
	text := clip(redact(err.Error(), secrets), longestText)
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
