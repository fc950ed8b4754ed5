package wire

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Text returns what a person wants to know of a call's error: for an error of
// the transport the part that names the address and the reason.
func Text(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	text := s.Message()
	if i := strings.LastIndex(text, "Error while dialing: "); i >= 0 {
		text = strings.TrimSuffix(text[i+len("Error while dialing: "):], `"`)
	}
	if s.Code() == codes.DeadlineExceeded && text == "context deadline exceeded" {
		return "no answer in time"
	}
	return text
}
