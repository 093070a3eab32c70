package trust

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// object reads one JSON object of which no key may be there twice. encoding/json alone takes the last of several, and
// keys in any case: two readers could understand two things.
func object(data []byte) (map[string]json.RawMessage, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	begin, err := dec.Token()
	if err != nil {
		return nil, jsonError(err)
	}
	if begin != json.Delim('{') {
		return nil, fmt.Errorf("%s instead of an object", kind(begin))
	}
	fields := map[string]json.RawMessage{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, jsonError(err)
		}
		name := key.(string) // the decoder lets nothing else be a key
		if _, twice := fields[name]; twice {
			return nil, fmt.Errorf("key %q is there twice", clip(name))
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, fmt.Errorf("%s: %w", clip(name), jsonError(err))
		}
		fields[name] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, jsonError(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("more follows the object")
	}
	return fields, nil
}

// exactly is object with all of these keys and no other.
func exactly(data []byte, keys ...string) (map[string]json.RawMessage, error) {
	fields, err := object(data)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		if _, there := fields[key]; !there {
			return nil, fmt.Errorf("key %q is missing", key)
		}
	}
	return fields, onlyKeys(fields, keys...)
}

// onlyKeys says which keys are not among those known.
func onlyKeys(fields map[string]json.RawMessage, known ...string) error {
	for _, key := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(known, key) {
			return fmt.Errorf("key %q is unknown; known are %s", clip(key), strings.Join(known, ", "))
		}
	}
	return nil
}

func text(data json.RawMessage) (string, error) {
	var s *string
	if err := json.Unmarshal(data, &s); err != nil || s == nil {
		return "", fmt.Errorf("not a string")
	}
	return *s, nil
}

func kind(t json.Token) string {
	switch t.(type) {
	case nil:
		return "null"
	case json.Delim:
		return "a list"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	}
	return "a number"
}

func jsonError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return fmt.Errorf("the JSON ends too early")
	}
	return err
}
