package cri

import (
	"context"

	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/cri/streaming"
	"github.com/criserver/criserver/sandbox"
)

// StreamService is what cri wants of streaming.Server: URLs that lead to streams.
type StreamService interface {
	Exec(streaming.ExecRequest) (url string, err error)
	Attach(streaming.AttachRequest) (url string, err error)
	PortForward(streaming.PortForwardRequest) (url string, err error)
}

func (h *runtimeHandlers) Exec(_ context.Context, r *runtimev1.ExecRequest) (*runtimev1.ExecResponse, error) {
	if err := validateExec(r); err != nil {
		return nil, err
	}
	url, err := h.serving().Streams.Exec(streaming.ExecRequest{
		Container: sandbox.ContainerID(r.GetContainerId()), Cmd: r.GetCmd(), Streams: clientStreams(r),
	})
	return &runtimev1.ExecResponse{Url: url}, err
}

func (h *runtimeHandlers) Attach(_ context.Context, r *runtimev1.AttachRequest) (*runtimev1.AttachResponse, error) {
	var f faults
	f.streams(r)
	if err := f.err(); err != nil {
		return nil, err
	}
	url, err := h.serving().Streams.Attach(streaming.AttachRequest{
		Container: sandbox.ContainerID(r.GetContainerId()), Streams: clientStreams(r),
	})
	return &runtimev1.AttachResponse{Url: url}, err
}

func (h *runtimeHandlers) PortForward(_ context.Context, r *runtimev1.PortForwardRequest) (*runtimev1.PortForwardResponse, error) {
	var f faults
	f.required("pod_sandbox_id", r.GetPodSandboxId())
	for i, port := range r.GetPort() {
		if port < 1 || port > 65535 {
			f.add(index("port", i), "%d is not a port", port)
		}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	url, err := h.serving().Streams.PortForward(streaming.PortForwardRequest{Pod: sandbox.ID(r.GetPodSandboxId()), Ports: r.GetPort()})
	return &runtimev1.PortForwardResponse{Url: url}, err
}

// streamer is a request for streams of a container.
type streamer interface {
	GetContainerId() string
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

func clientStreams(r streamer) streaming.Streams {
	return streaming.Streams{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), TTY: r.GetTty()}
}

func validateExec(r *runtimev1.ExecRequest) error {
	var f faults
	f.streams(r)
	f.command(r.GetCmd())
	return f.err()
}

// streams reports a request without a container or streams, or for a second output of a terminal.
func (f *faults) streams(r streamer) {
	f.required("container_id", r.GetContainerId())
	if r.GetTty() && r.GetStderr() {
		f.add("stderr", "must not be set together with tty: the output of a terminal is one stream")
	}
	if !r.GetStdin() && !r.GetStdout() && !r.GetStderr() {
		f.add("stdout", "one of stdin, stdout and stderr must be set")
	}
}
