package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	"k8s.io/utils/exec"
)

// Version 5 of the WebSocket protocol is version 4 with a message that ends stdin. The library has its parts and does not put
// them together.

// wsChannels are the channels of a command, by the numbers that the protocol gives them.
const wsChannels = remotecommand.StreamResize + 1

// run does what a client has opened its streams for.
type run func(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) error

// serveWebSocket serves a client that speaks version 5.
func (s *Server) serveWebSocket(w http.ResponseWriter, r *http.Request, streams Streams, run run) {
	kinds := make([]wsstream.ChannelType, wsChannels) // ignored
	for channel, wanted := range map[int]bool{remotecommand.StreamStdIn: streams.Stdin, remotecommand.StreamResize: streams.TTY} {
		if wanted {
			kinds[channel] = wsstream.ReadChannel
		}
	}
	for channel, wanted := range map[int]bool{remotecommand.StreamStdOut: streams.Stdout, remotecommand.StreamStdErr: streams.Stderr, remotecommand.StreamErr: true} {
		if wanted {
			kinds[channel] = wsstream.WriteChannel
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds}})
	conn.SetIdleTimeout(s.config.IdleTimeout)
	_, channels, err := conn.Open(w, r)
	if err != nil {
		s.config.Log.Debug("cannot open a WebSocket", "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	_, _ = channels[firstOutput(kinds)].Write(nil) // says that the channels are open; what is wrong shows later
	err = run(r.Context(), channels[remotecommand.StreamStdIn], channels[remotecommand.StreamStdOut], channels[remotecommand.StreamStdErr],
		wsSizes(r.Context(), channels[remotecommand.StreamResize]))
	if text, failed := json.Marshal(statusOf(err)); failed == nil {
		_, _ = channels[remotecommand.StreamErr].Write(text) // the client may be gone
	}
}

// firstOutput is the channel that gets an empty message, as clients know it of version 4.
func firstOutput(kinds []wsstream.ChannelType) int { return slices.Index(kinds, wsstream.WriteChannel) }

// wsSizes reads the sizes of a terminal, which come as JSON, until one makes no sense. What comes after that is dropped: unread it
// would hold up the other channels.
func wsSizes(ctx context.Context, from io.Reader) <-chan remotecommand.TerminalSize {
	to := make(chan remotecommand.TerminalSize)
	go func() {
		defer func() { _, _ = io.Copy(io.Discard, from) }()
		defer close(to)
		for decoder := json.NewDecoder(from); ; {
			var size remotecommand.TerminalSize
			if decoder.Decode(&size) != nil {
				return
			}
			select {
			case to <- size:
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}

// wsStatus is how a stream ended, in the form of Kubernetes' metav1.Status.
type wsStatus struct {
	Status  string           `json:"status"`
	Message string           `json:"message,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	Details *wsStatusDetails `json:"details,omitempty"`
	Code    int              `json:"code,omitempty"`
}

type wsStatusDetails struct {
	Causes []wsStatusCause `json:"causes"`
}

type wsStatusCause struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message"`
}

func statusOf(err error) wsStatus {
	var ended exec.ExitError
	switch {
	case err == nil:
		return wsStatus{Status: "Success"}
	case errors.As(err, &ended) && ended.Exited():
		code := fmt.Sprint(ended.ExitStatus())
		return wsStatus{Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason, Message: "command terminated with non-zero exit code: " + code,
			Details: &wsStatusDetails{[]wsStatusCause{{remotecommand.ExitCodeCauseType, code}}}}
	}
	return wsStatus{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError, Message: "Internal error occurred: " + err.Error()}
}
