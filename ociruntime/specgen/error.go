package specgen

import "fmt"

// InvalidError says which field of a request cannot be served, and why.
type InvalidError struct {
	Field  string // path in the message: "linux.security_context.run_as_group"
	Reason string
	Err    error // cause, may be nil
}

func (e *InvalidError) Error() string { return e.Field + ": " + e.Reason }

func (e *InvalidError) Unwrap() error { return e.Err }

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// because makes err the reason.
func because(field string, err error) error {
	return &InvalidError{Field: field, Reason: err.Error(), Err: err}
}

func indexed(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }
