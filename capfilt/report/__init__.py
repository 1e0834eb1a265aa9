"""What people look at: progress, the funnel, the contact sheet."""
