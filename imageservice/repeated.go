package imageservice

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// freeKeys are the objects of which the keys are the author's own words, not fields.
var freeKeys = map[string]bool{"annotations": true, "labels": true}

// repeated looks for a field that a document has twice, in the spelling of which case does not count: one reader would take the
// first, another the last. JSON that is not well-formed is left to the decoder to refuse.
func repeated(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	type object struct {
		seen map[string]bool // nil: a list
		free bool
		key  string // that was read; empty: a key is next
	}
	var open []*object
	for {
		token, err := dec.Token()
		if err != nil {
			return nil // the end, too
		}
		var top *object
		if len(open) > 0 {
			top = open[len(open)-1]
		}
		if name, isString := token.(string); isString && top != nil && top.seen != nil && top.key == "" {
			key := name
			if !top.free {
				key = strings.ToLower(name)
			}
			if top.seen[key] {
				return fmt.Errorf("field %q is there twice", name)
			}
			top.seen[key] = true
			top.key = "\x00" + key // not empty, whatever the key is
			continue
		}
		free := top != nil && freeKeys[strings.TrimPrefix(top.key, "\x00")]
		if top != nil && token != json.Delim('}') && token != json.Delim(']') {
			top.key = ""
		}
		switch token {
		case json.Delim('{'):
			open = append(open, &object{seen: map[string]bool{}, free: free})
		case json.Delim('['):
			open = append(open, &object{})
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
	}
}
