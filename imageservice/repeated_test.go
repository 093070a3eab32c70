package imageservice

import "testing"

func TestRepeatedFields(t *testing.T) {
	for text, twice := range map[string]bool{
		`{"a":1,"b":{"a":2},"c":[{"a":3},{"a":4}]}`: false,
		`{"a":1,"a":1}`:                        true,
		`{"a":1,"A":1}`:                        true,
		`{"b":[{"a":[],"x":{"y":"a"},"a":1}]}`: true,
		`{"annotations":{"a":"1","A":"2"},"config":{"Labels":{"k":"","K":""}}}`: false,
		`{"annotations":{"a":"1","a":"2"}}`:                                     true,
		`{"a":"a","b":"a"}`:                                                     false,
		`{"":1,"":2}`:                                                           true,
		`{"a":"annotations","b":{"x":1,"X":2}}`:                                 true,
		`{"a":[],"b":{},"c":null,"d":true,"e":1}`:                               false,
		`["a","a"]`: false,
		`{"a":1,`:   false,
		``:          false,
	} {
		if err := repeated([]byte(text)); (err != nil) != twice {
			t.Errorf("%s: %v", text, err)
		}
	}
}
