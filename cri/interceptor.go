package cri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/stage"
)

// early are the RPCs that are answered before Start.
var early = map[string]bool{"Version": true, "Status": true, "RuntimeConfig": true}

// lasting are the RPCs that take as long as their clients want.
var lasting = map[string]bool{"GetContainerEvents": true}

// intercept makes an operation of every RPC, turns its error and panic into a status, and writes its log line.
func (s *Server) intercept(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	method := path.Base(info.FullMethod)
	if s.serving() == nil && !early[method] {
		return nil, toStatus(errStarting, nil)
	}
	secrets := secretsOf(request)
	ctx, op := s.config.Recorder.Start(ctx, method, subject(request))
	var response any
	err := stage.Protect(func() (err error) {
		response, err = handler(ctx, request)
		return err
	})
	answer := toStatus(err, secrets)
	op.End(answer)
	s.report(ctx, op.Record(), err, answer)
	if answer != nil {
		return nil, answer
	}
	return response, nil
}

// interceptStream does the same for streams. What they are about is in messages that come later.
func (s *Server) interceptStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if s.serving() == nil {
		return toStatus(errStarting, nil)
	}
	ends, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	go func() {
		select {
		case <-s.ending:
			cancel(errStopping)
		case <-ends.Done():
		}
	}()
	ctx, op := s.config.Recorder.Start(ends, path.Base(info.FullMethod), "")
	err := stage.Protect(func() error { return handler(srv, inOperation{stream, ctx}) })
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx) // and not what sending to nobody says
	}
	answer := toStatus(err, nil)
	op.End(answer)
	s.report(ctx, op.Record(), err, answer)
	return answer
}

// inOperation is a stream whose context belongs to an operation.
type inOperation struct {
	grpc.ServerStream
	ctx context.Context
}

func (s inOperation) Context() context.Context { return s.ctx }

// report counts an RPC and writes one line about it: a warning if it failed, a note if it was slow, else only for debugging.
// What a client may ask for in vain as a matter of course, clients that went away and our own end are no reason to warn.
func (s *Server) report(ctx context.Context, r stage.Record, err, answer error) {
	s.meter.count(r.Name, status.Code(answer), r.Took)
	level, text := slog.LevelDebug, "rpc"
	limit := s.settings.Load().Slow
	slow := limit > 0 && r.Took > limit && !lasting[r.Name]
	if slow {
		level, text = slog.LevelInfo, "rpc was slow"
	}
	attrs := []slog.Attr{slog.String("rpc", r.Name), slog.String("subject", r.Subject), slog.Duration("took", r.Took)}
	if answer != nil {
		st := status.Convert(answer)
		attrs = append(attrs, slog.String("code", st.Code().String()), slog.String("error", st.Message()))
		text = "rpc failed"
		switch code := st.Code(); {
		case code == codes.NotFound, code == codes.Unimplemented, code == codes.Canceled, errors.Is(err, errStopping):
		default:
			level = slog.LevelWarn
		}
	}
	var p *stage.PanicError
	if errors.As(err, &p) {
		level = slog.LevelError
		attrs = append(attrs, slog.String("stack", string(p.Stack)))
	}
	if len(r.Stages) > 0 && (slow || answer != nil) {
		attrs = append(attrs, slog.String("stages", stagesLine(r.Stages)))
	}
	s.config.Log.LogAttrs(ctx, level, text, attrs...)
}

// stagesLine prints stages as "network 4.2 s, mount 0.3 ms (running)".
func stagesLine(stages []stage.Stage) string {
	var b strings.Builder
	for i, st := range stages {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%s %s", st.Name, stage.Duration(st.Took))
		if st.Running {
			b.WriteString(" (running)")
		}
	}
	return b.String()
}

// subject says in a few words what a request is about. It is logged: no secrets, no environment, no commands.
func subject(request any) string {
	var parts []string
	switch r := request.(type) {
	case interface{ GetContainerId() string }:
		parts = append(parts, r.GetContainerId())
	case *runtimev1.CreateContainerRequest:
		m := r.GetConfig().GetMetadata()
		parts = append(parts, r.GetPodSandboxId(), fmt.Sprintf("%s#%d", m.GetName(), m.GetAttempt()))
	case interface{ GetPodSandboxId() string }:
		parts = append(parts, r.GetPodSandboxId())
	case *runtimev1.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		parts = append(parts, fmt.Sprintf("%s/%s#%d", m.GetNamespace(), m.GetName(), m.GetAttempt()), m.GetUid())
	case interface{ GetImage() *runtimev1.ImageSpec }:
		parts = append(parts, r.GetImage().GetImage())
	}
	return clip(strings.Join(parts, " "), 256)
}

// clip shortens text to at most longest bytes.
func clip(text string, longest int) string {
	return strings.ToValidUTF8(text[:min(len(text), longest)], "?")
}
