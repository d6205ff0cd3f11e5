"""Why a barrier stays that no crash state shows to be needed. A reason for one that is shown is an error."""

REASONS: dict[str, str] = {
}
