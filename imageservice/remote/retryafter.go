package remote

import (
	"net/http"
	"strings"
	"time"
)

// longestRetryAfter is what a longer Retry-After is taken for. How much of it is obeyed is for the configuration to say.
const longestRetryAfter = 24 * time.Hour

// parseRetryAfter reads seconds or a date; 0 if it is neither, or over.
func parseRetryAfter(text string, now time.Time) time.Duration {
	text = strings.TrimSpace(text)
	if text != "" && strings.Trim(text, "0123456789") == "" {
		seconds := time.Duration(0)
		for _, digit := range text {
			if seconds = 10*seconds + time.Duration(digit-'0'); seconds > longestRetryAfter/time.Second {
				return longestRetryAfter
			}
		}
		return seconds * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return min(max(0, at.Sub(now)), longestRetryAfter)
}
