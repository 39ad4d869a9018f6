from meguri_registry.app import build

if __name__ == "__main__":
    build().serve()
