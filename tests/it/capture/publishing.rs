//! Publishing: what is refused, what stays, and that writers never fail because of us.
