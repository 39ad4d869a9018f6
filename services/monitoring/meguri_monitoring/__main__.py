from meguri_monitoring.app import build

if __name__ == "__main__":
    build().serve()
