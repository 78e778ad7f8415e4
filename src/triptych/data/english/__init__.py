"""Questions and facts made from English captions by rule."""
