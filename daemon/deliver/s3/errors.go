package s3

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"capd/daemon/deliver"
)

// code gives the code of a server's answer, "" for any other error.
func code(err error) string {
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return ""
	}
	if answer.Code == "" || answer.StatusCode == http.StatusPreconditionFailed || answer.StatusCode == http.StatusNotImplemented {
		switch answer.StatusCode { // a HEAD's answer has no body, and some servers have codes of their own
		case http.StatusPreconditionFailed:
			return "PreconditionFailed"
		case http.StatusNotImplemented:
			return "NotImplemented"
		case http.StatusNotFound:
			return "NoSuchKey"
		}
	}
	return answer.Code
}

// denied says whether the server knows us and does not permit what was asked.
func denied(err error) bool { return code(err) == "AccessDenied" }

// classify says why a request failed.
func (s *Store) classify(ctx context.Context, err error, what string) *deliver.Error {
	var known *deliver.Error
	if errors.As(err, &known) {
		return known
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		return s.classifyTransport(ctx, err, what)
	}
	reason, hint := s.reason(code(err), answer.StatusCode)
	text := answer.Message
	if text == "" {
		text = http.StatusText(answer.StatusCode)
	}
	if c := code(err); c != "" && c != text {
		text = c + ": " + text
	}
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return deliver.Fail(reason, nil, "%s: the server answers %s", what, strings.TrimSuffix(text, ".")).WithHint("%s", hint)
}

// classifyTransport knows what net/http and minio-go say of an answer that did not come
// whole: neither has an error of its own for it.
func (s *Store) classifyTransport(ctx context.Context, err error, what string) *deliver.Error {
	text := err.Error()
	switch {
	case ctx.Err() != nil:
	case errors.Is(err, http.ErrSchemeMismatch):
		return deliver.Fail(deliver.ReasonCertificate, nil, "%s: %s does not speak TLS", what, s.p.Endpoint).WithHint("check the endpoint's scheme and port: is it http?")
	case strings.Contains(text, "Connection closed by foreign host"), // minio-go, for io.EOF
		strings.Contains(text, "transport connection broken"), strings.Contains(text, "server closed idle connection"):
		return deliver.Fail(deliver.ReasonCut, nil, "%s: the connection to %s was cut", what, s.p.Endpoint).WithHint("it is tried again; if it stays, check that an S3 server listens there")
	}
	return deliver.Classify(ctx, err, "%s", what)
}

// reason knows S3's error codes (Amazon S3 API reference, "Error responses") and those
// of other servers.
func (s *Store) reason(code string, status int) (deliver.Reason, string) {
	switch code {
	case "SignatureDoesNotMatch":
		return deliver.ReasonCredentials, "the secret does not belong to the access key's id, or the region is another: check both"
	case "InvalidAccessKeyId", "InvalidSecurity", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "AuthFailure", "NotSignedUp", "InvalidClientTokenId", "XAdminUserNotFound":
		return deliver.ReasonCredentials, "check the access key: the server does not know it, or not any more"
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		return deliver.ReasonPermission, "give the key s3:PutObject and s3:GetObject below the profile's path, and s3:ListBucket on the bucket"
	case "NoSuchBucket":
		return deliver.ReasonMissing, "make the bucket " + s.p.Bucket + ", or correct bucket in the profile"
	case "RequestTimeTooSkewed", "RequestExpired":
		return deliver.ReasonClock, "set this box's clock (date -u; is NTP running?)"
	case "SlowDown", "ServiceUnavailable", "InternalError", "OperationAborted", "RequestTimeout", "Throttling", "ThrottlingException",
		"RequestLimitExceeded", "TooManyRequests", "ConditionalRequestConflict", "SlowDownRead", "SlowDownWrite", "ServerNotInitialized", "Busy":
		return deliver.ReasonBusy, "the server asks for patience; it is tried again"
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "IncompleteBody", "InvalidDigest", "ContentSHA256Mismatch":
		return deliver.ReasonCorrupt, "bytes were changed on the way; the server took nothing, it is sent again"
	case "EntityTooLarge":
		return deliver.ReasonTooLarge, "make segment_size smaller in the profile"
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage", "StorageLimitExceeded":
		return deliver.ReasonNoSpace, "make room there; it is tried again"
	case "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "InvalidRegion":
		return deliver.ReasonRefused, "the bucket is in another region: correct region (and endpoint) in the profile"
	case "NotImplemented":
		return deliver.ReasonUnsupported, "the server cannot do what the profile asks: try without sse and object_lock_days"
	case "InvalidRequest", "InvalidBucketState", "ObjectLockConfigurationNotFoundError":
		if s.p.ObjectLockDays > 0 {
			return deliver.ReasonRefused, "object_lock_days needs a bucket that was made with object lock"
		}
		return deliver.ReasonRefused, ""
	case "KMS.NotFoundException", "KMS.DisabledException", "KMS.InvalidStateException", "ServerSideEncryptionConfigurationNotFoundError", "InvalidEncryptionAlgorithmError":
		return deliver.ReasonRefused, "check sse in the profile"
	}
	switch {
	case status == http.StatusInsufficientStorage:
		return deliver.ReasonNoSpace, "make room there; it is tried again"
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		return deliver.ReasonBusy, "the server has a fault of its own; it is tried again"
	case status == http.StatusUnauthorized:
		return deliver.ReasonCredentials, "check the access key"
	case status == http.StatusForbidden:
		return deliver.ReasonPermission, ""
	case status >= 300 && status < 400:
		return deliver.ReasonRefused, "the server sends us elsewhere: correct endpoint and region"
	case status >= 400:
		return deliver.ReasonRefused, ""
	}
	return deliver.ReasonUnknown, ""
}
