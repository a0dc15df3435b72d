"""The kit that every page and picture is made with: HTML by construction, drawing, scales, one style."""
