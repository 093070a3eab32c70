package trust

import (
	"bytes"
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// payload is what a signature vouches for.
type payload struct {
	name   reference.Named // as it was signed, with or without a tag
	digest digest.Digest   // of a manifest
}

const payloadType = "cosign container image signature"

// parsePayload reads a payload of which the signature is right.
func parsePayload(data []byte) (payload, error) {
	whole, err := exactly(data, "critical", "optional")
	if err != nil {
		return payload{}, err
	}
	if optional := bytes.TrimSpace(whole["optional"]); !bytes.Equal(optional, []byte("null")) {
		if _, err := object(optional); err != nil {
			return payload{}, fmt.Errorf("optional: %w", err)
		}
	}
	critical, err := exactly(whole["critical"], "type", "image", "identity")
	if err != nil {
		return payload{}, fmt.Errorf("critical: %w", err)
	}
	if kind, err := text(critical["type"]); err != nil || kind != payloadType {
		return payload{}, fmt.Errorf("critical.type: %q instead of %q", clip(kind), payloadType)
	}
	image, err := exactly(critical["image"], "docker-manifest-digest")
	if err != nil {
		return payload{}, fmt.Errorf("critical.image: %w", err)
	}
	var p payload
	hex, err := text(image["docker-manifest-digest"])
	if err == nil {
		p.digest, err = digest.Parse(hex)
	}
	if err != nil {
		return payload{}, fmt.Errorf("critical.image.docker-manifest-digest: %w", err)
	}
	id, err := exactly(critical["identity"], "docker-reference")
	if err != nil {
		return payload{}, fmt.Errorf("critical.identity: %w", err)
	}
	if p.name, err = parseName(id["docker-reference"]); err != nil {
		return payload{}, fmt.Errorf("critical.identity.docker-reference: %w", err)
	}
	return p, nil
}
